"""What a plan saves by kind adds up to what it saves."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import INPUT

from usdcore.costs import cost
from usdcore.plans import Drop, Keep, Plan
from usdcore.shares import removed
from usdcore.units import find_units

PLAN = Plan(
    records=(
        Drop(branch="blocks.1.mlp"),
        Keep(group="blocks.0.attn:heads", indices=(0, 2)),
        Keep(group="blocks.0.attn:v_dims", indices=(*range(5), *range(24, 36))),
        Keep(group="blocks.2.mlp:hidden", indices=tuple(range(100))),
    )
)


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_shares_add_up_to_what_is_saved(vit: nn.Module, metric: str) -> None:
    units = find_units(vit, torch.zeros(1, *INPUT))
    found = removed(units, PLAN, metric)  # type: ignore[arg-type]
    assert list(found) == ["branches", "heads", "v_dims", "hidden"]
    assert all(share > 0 for share in found.values())
    left, whole = (getattr(cost(units, plan), metric) for plan in (PLAN, Plan()))
    assert sum(found.values()) == pytest.approx(1 - left / whole)


def test_kinds_that_were_not_cut_are_left_out(vit: nn.Module) -> None:
    units = find_units(vit, torch.zeros(1, *INPUT))
    assert removed(units, Plan(records=PLAN.records[:2])).keys() == {"branches", "heads"}
    assert removed(units, Plan()) == {"branches": 0.0}
