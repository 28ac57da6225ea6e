"""Hosts in other styles: found by dataflow, pruned exactly where no reason is given, and reasons that say where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from counting import counted_macs
from exact import masked_output
from torch import nn
from torch.nn.utils import parametrizations
from units.hosts import (
    DIM,
    HIDDEN,
    INPUT,
    TOKENS,
    Block,
    Gated,
    InPlace,
    Layers,
    Peeking,
    PostNorm,
    Residual,
    Scaled,
    Shared,
)
from zoo import gap, randomise

from usdcore.costs import cost
from usdcore.errors import UsdcoreError
from usdcore.plans import Keep, Plan
from usdcore.surgery import shrink
from usdcore.units import find_units
from usdcore.units.types import Group

MERGES = ("dims", "attribute", "product", "unflatten", "flat")
CORES = ("matmul", "fused", "einsum", "folded")


def batch() -> torch.Tensor:
    return torch.randn(3, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def prunable(model: nn.Module) -> list[Group]:
    return [group for group in find_units(model, INPUT).groups.values() if group.reason is None]


def check_exact(model: nn.Module) -> None:
    """Removing entries equals zeroing them at the mask points, and costs what was predicted."""
    model = randomise(model).double().eval()
    units, x = find_units(model, INPUT), batch()
    plan = Plan(records=tuple(Keep(group=g.name, indices=tuple(range(1, g.size, 2))) for g in prunable(model)))
    assert plan.records
    small = shrink(model, plan, INPUT)
    masked = masked_output(model, units, plan, x)
    with torch.no_grad():
        out = small(x)
        assert gap(masked, model(x)) > 1e-3
    assert gap(out, masked) < 1e-12
    assert counted_macs(small, x) == 3 * cost(units, plan).macs


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("merge", MERGES)
def test_attention_in_any_style(merge: str, core: str) -> None:
    model = Layers(Block(merge=merge, core=core))
    units = find_units(model, INPUT)
    (attention,), (ffn,) = units.attention, units.ffn
    assert (attention.name, attention.num_heads, attention.qk_dim) == ("layers.0.mix", 4, 6)
    assert (ffn.name, ffn.hidden) == ("layers.0.feed", HIDDEN)
    heads = attention.groups[0]
    assert heads.reason is None
    owners = {m.tensor.rpartition(".")[0] for m in heads.members}
    assert owners == {f"layers.0.mix.{name}" for name in ("to_q", "to_k", "to_v", "out")}
    names = {a.name for a in heads.attributes}
    assert names == ({"h", "total"} if merge == "attribute" else {"h"})
    own = [("layers.0.before", "layers.0.mix"), ("layers.0.feed",)]
    assert [branch.modules for branch in units.branches.values()] == own
    check_exact(model)


def test_as_many_heads_as_dims_by_tag() -> None:
    heads = find_units(Layers(Block(head_dim=4, merge="unflatten")), INPUT).groups["layers.0.mix:heads"]
    assert [(a.name, a.per_entry) for a in heads.attributes] == [("h", 1)]


@pytest.mark.parametrize("core", CORES)
def test_a_fixed_size_in_a_method_is_rewritten(core: str) -> None:
    model = Layers(Block(merge="number", core=core))
    heads = find_units(model, INPUT).groups["layers.0.mix:heads"]
    assert heads.reason is None
    assert [(module, edit.function, edit.kind) for module, edit in heads.edits] == [("layers.0.mix", "forward", "size")]
    check_exact(model)


@pytest.mark.parametrize("core", CORES)
def test_a_fixed_size_elsewhere_is_a_reason_with_its_line(core: str) -> None:
    heads = find_units(Layers(Block(merge="function", core=core)), INPUT).groups["layers.0.mix:heads"]
    assert heads.reason is not None
    assert "a fixed size in reshape in layers.0.mix (" in heads.reason
    assert "which is not in a method of its module" in heads.reason
    line = int(heads.reason.partition("units/hosts.py:")[2].partition(")")[0])
    code = Path(__file__).with_name("hosts.py").read_text().splitlines()[line - 1]
    assert code.strip() == "return y.transpose(1, 2).reshape(len(y), y.shape[2], width)"


def test_a_parameter_on_the_logits_follows_the_heads() -> None:
    model = Layers(Block(core="temperature"))
    heads = find_units(model, INPUT).groups["layers.0.mix:heads"]
    assert ("layers.0.mix.temperature", 0) in [(m.tensor, m.axis) for m in heads.members]
    check_exact(model)


def test_an_attribute_used_as_a_number_is_a_reason() -> None:
    heads = find_units(Layers(Block(core="average")), INPUT).groups["layers.0.mix:heads"]
    assert "a number in div in layers.0.mix" in (heads.reason or "")


@pytest.mark.parametrize("cut", ["attribute", "split"])
def test_gated_halves_cut_by_an_attribute(cut: str) -> None:
    model = Layers(Residual(Gated(cut)))
    (hidden,) = prunable(model)
    assert [(a.name, a.per_entry) for a in hidden.attributes] == [("half", 1)]
    check_exact(model)


@pytest.mark.parametrize("cut", ["number", "list"])
def test_gated_halves_cut_by_a_number(cut: str) -> None:
    (ffn,) = find_units(Layers(Residual(Gated(cut))), INPUT).ffn
    assert ffn.hidden == HIDDEN
    assert "a fixed size in s" in (ffn.groups[0].reason or "")


def test_residuals_in_place() -> None:
    model = Layers(InPlace())
    assert [b.reason for b in find_units(model, INPUT).branches.values()] == [None, None]
    check_exact(model)


def test_a_branch_that_reads_more_than_the_stream() -> None:
    model = Layers(Peeking())
    reason = find_units(model, INPUT).branches["layers.0.reader"].reason
    assert "reads an activation that is not the stream" in (reason or "")
    check_exact(model)


@pytest.mark.parametrize("block", [Scaled, PostNorm])
def test_branches_among_other_code(block: type[nn.Module]) -> None:
    model = Layers(block())
    assert all(branch.reason is None for branch in find_units(model, INPUT).branches.values())
    check_exact(model)


def test_a_module_used_twice() -> None:
    units = find_units(Layers(Shared()), INPUT)
    assert all("used a second time" in (unit.groups[0].reason or "") for unit in units.ffn)
    assert len({unit.name for unit in units.ffn}) == len(units.ffn) == 2


def test_a_block_that_runs_twice() -> None:
    block = Block()
    reasons = [b.reason for b in find_units(Layers(block, block), INPUT).branches.values()]
    assert len(reasons) == 4
    assert all(reason == "layers.0 runs more than once" for reason in reasons)


def test_a_computed_weight() -> None:
    model = Layers(Block())
    parametrizations.weight_norm(model.layers[0].feed[1])
    reason = find_units(model, INPUT).groups["layers.0.feed:hidden"].reason
    assert "with a weight that is computed" in (reason or "")


class Odd(nn.Module):
    """A feed-forward with an op that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.cumsum(self.up(x), -1))


def test_an_unknown_op_is_a_reason() -> None:
    (ffn,) = find_units(Layers(Residual(Odd())), INPUT).ffn
    assert "it is not known how cumsum in layers.0.inner (" in (ffn.groups[0].reason or "")


class Padded(Odd):
    """The op changes the shape, so that the reader's entries are not known either."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.pad(self.up(x)[..., 1:], (0, 1)))


def test_entries_that_are_lost_are_told() -> None:
    (ffn,) = find_units(Layers(Residual(Padded())), INPUT).ffn
    assert "constant_pad_nd in layers.0.inner (" in (ffn.groups[0].reason or "")
    assert ffn.branch is not None
    assert ffn.branch.reason is None


class Values(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_forward_that_branches_on_values() -> None:
    with pytest.raises(UsdcoreError, match="branch on values"):
        find_units(Layers(Values()), INPUT)


class View(nn.Module):
    """Writes in place through a view: the labels of what is behind it are no longer known."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        y[:, 0].mul_(x[:, 0, :1])
        return self.down(y)


def test_writing_through_a_view_is_a_reason() -> None:
    (ffn,) = find_units(Layers(Residual(View())), INPUT).ffn
    assert "written in place" in (ffn.groups[0].reason or "")
