"""A branch or a block that is off in every step of an epoch, a group at its minimum, and tokens that are all left out
are seen; others are not.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from zoo import INPUT

from usdcore.engine.watch import Watch
from usdcore.gates import Draw, ForwardState, Gate, TokenDraw
from usdcore.session import Session
from usdcore.strategy import Attachment, Budget, Strategy

SITES = {"blocks.0.attn": (), "blocks.1.mlp": (4,), "blocks.2.attn:heads": (4,)}


class Scripted(Gate):
    """Decides what the test says."""

    sites = tuple(SITES)

    def __init__(self) -> None:
        super().__init__()
        self.keeps = {site: torch.ones(shape) for site, shape in SITES.items()}
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def draw(self, x_BNC: torch.Tensor | None, state: ForwardState) -> dict[str, Draw]:
        return {site: Draw(keep) for site, keep in self.keeps.items()}


class Script(Strategy):
    """Puts the one gate."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(use="script"))

    def attach(self, site: Attachment) -> None:
        self.gate = Scripted()
        site.gate("model", self.gate)


@pytest.fixture
def watched(vit: torch.nn.Module) -> tuple[Session, Scripted]:
    session, script = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.9, 4)), Script()
    session.begin_phase([script])
    session.model.train()
    return session, script.gate


def epoch(watch: Watch, gate: Scripted, steps: list[dict[str, torch.Tensor]]) -> dict[str, str]:
    for keeps in steps:
        gate.keeps.update(keeps)
        watch.session.model(torch.zeros(4, *INPUT))
        watch.look()
    return {found["site"]: found["text"] for found in watch.epoch()}


def test_collapsed_gates(watched: tuple[Session, Scripted]) -> None:
    session, gate = watched
    watch, off = Watch(session), torch.zeros(())
    assert epoch(watch, gate, [{}] * 5) == {}
    once = {"blocks.0.attn": off, "blocks.1.mlp": torch.zeros(4), "blocks.2.attn:heads": torch.eye(4)[1]}
    assert epoch(watch, gate, [once, {}, {}]) == {
        "blocks.0.attn": "script kept blocks.0.attn off in every step, so it learned nothing",
        "blocks.1.mlp": "script kept blocks.1.mlp off in every step, so it learned nothing",
        "blocks.2.attn:heads": "script kept at most 1 of the heads of blocks.2.attn in every step",
    }


@pytest.mark.parametrize("when", range(9))
def test_on_once_is_not_collapsed(watched: tuple[Session, Scripted], when: int) -> None:
    session, gate = watched
    off = {"blocks.0.attn": torch.zeros(()), "blocks.1.mlp": torch.zeros(4), "blocks.2.attn:heads": torch.zeros(4)}
    on = {
        "blocks.0.attn": torch.ones(()),
        "blocks.1.mlp": torch.eye(4)[2],
        "blocks.2.attn:heads": torch.tensor([0.0, 1.0, 0.0, 1.0]),
    }
    assert epoch(Watch(session), gate, [on if step == when else off for step in range(9)]) == {}


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_it_goes_on_within_an_epoch(watched: tuple[Session, Scripted], cut: int) -> None:
    session, gate = watched
    first, second = Watch(session), Watch(session)
    for keep in (1.0, 0.0):
        for watch, steps in ((first, range(cut)), (second, range(cut, 6))):
            if watch is second:
                second.load_state_dict(first.state_dict())
            for step in steps:
                gate.keeps["blocks.0.attn"] = torch.tensor(keep if step == 2 else 0.0)
                session.model(torch.zeros(4, *INPUT))
                watch.look()
        assert [found["site"] for found in second.epoch()] == ([] if keep else ["blocks.0.attn"])
        first.epoch()


class Blocks(Gate):
    """Decides about a whole block, and about the tokens of two others; those it keeps are the first `left`."""

    sites = ("blocks.0", "blocks.1:tokens", "blocks.2:tokens")
    tap = "blocks.0"
    scope = "token"

    def __init__(self) -> None:
        super().__init__()
        self.keep, self.left = torch.ones(()), 9

    def draw(self, x_BNC: torch.Tensor | None, state: ForwardState) -> dict[str, Draw]:
        assert x_BNC is not None
        keep = (torch.arange(x_BNC.shape[1]) < self.left).float().expand(len(x_BNC), -1)
        tokens = TokenDraw(keep)
        return {"blocks.0": Draw(self.keep), "blocks.1:tokens": tokens, "blocks.2:tokens": tokens}


@pytest.mark.parametrize(
    ("keeps", "found"),
    [
        ([(1, 9), (0, 1), (0, 1)], []),
        ([(0, 1), (0, 1), (0, 2)], ["blocks.0"]),
        ([(0, 2), (0, 1), (1, 1)], []),
        ([(1, 1), (0, 1), (0, 1)], ["blocks.1:tokens"]),
        ([(0, 1)] * 5, ["blocks.0", "blocks.1:tokens"]),
    ],
)
def test_blocks_and_tokens(vit: torch.nn.Module, keeps: list[tuple[int, int]], found: list[str]) -> None:
    """The class token always stays; tokens are said once, though they are gone from two blocks."""
    session = Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.9, 4))

    class Put(Strategy):
        def attach(self, site: Attachment) -> None:
            site.gate("model", Blocks())

    put = Put(SimpleNamespace(use="put"))
    session.begin_phase([put])
    session.model.train()
    gate, watch = put.gates["model"], Watch(session)
    for keep, left in keeps:
        gate.keep, gate.left = torch.tensor(float(keep)), left
        session.model(torch.zeros(4, *INPUT))
        watch.look()
    texts = {one["site"]: one["text"] for one in watch.epoch()}
    assert list(texts) == found
    assert texts.get("blocks.0", "put kept blocks.0 off in every step, so it learned nothing").startswith("put kept")
    words = "put left no patch of any image at blocks.1:tokens in any step"
    assert texts.get("blocks.1:tokens", words) == words


def test_without_gates_there_is_nothing_to_see(vit: torch.nn.Module) -> None:
    watch = Watch(Session(vit, torch.zeros(1, *INPUT), Budget("macs", 0.9, 4)))
    watch.look()
    assert watch.epoch() == []
