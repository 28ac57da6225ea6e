"""One file holds a compressed model: safetensors weights, with the plan as JSON in the header. No pickle.

`base + plan + weights` rebuilds the model anywhere: the base is built by timm without its weights, the plan is applied,
the weights are loaded strictly.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import timm
from safetensors import SafetensorError, safe_open

from usdcore.errors import UsdcoreError, nearest
from usdcore.files import save_tensors
from usdcore.plans import Base, Plan, parse_plan
from usdcore.surgery import shrink

if TYPE_CHECKING:
    import torch
    from torch import nn

KEY = "usdcore.plan"

#: Arguments of timm.create_model that would read files or the network.
FORBIDDEN = frozenset(
    {
        "pretrained",
        "checkpoint_path",
        "cache_dir",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "model_name",
        "num_classes",
    }
)


def create(base: Base) -> nn.Module:
    """The base model with fresh weights. Errors: a name that timm does not know, arguments that it refuses or that
    load.
    """
    if base.name not in timm.list_models():
        msg = f"timm has no model named {base.name!r}: {nearest(base.name, timm.list_models())}"
        raise UsdcoreError(msg)
    try:
        model: nn.Module = timm.create_model(
            base.name, pretrained=False, num_classes=base.num_classes, **constructor_kwargs(base)
        )
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        msg = f"timm can't make {base.name} with {json.dumps(base.kwargs)}: {error}"
        raise UsdcoreError(msg) from error
    return model


def save(model: nn.Module, plan: Plan, path: str | Path) -> None:
    """Write the model to `path`, aside and then renamed. `plan` must name its base."""
    if plan.base is None:
        msg = "a plan without a base can't be loaded again: give Plan(base=...)"
        raise UsdcoreError(msg)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(tensors, Path(path), {KEY: plan.model_dump_json()})


def read_plan(path: str | Path) -> Plan:
    """The plan in a model file's header. Errors: no such file, not safetensors, no plan, a damaged plan."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        msg = f"{path}: can't be read" if Path(path).exists() else f"{path}: no such file"
        raise UsdcoreError(msg) from None
    except (SafetensorError, OSError) as error:
        msg = f"{path}: not a safetensors file, or a damaged one: {error}"
        raise UsdcoreError(msg) from None
    if KEY not in metadata:
        msg = f"{path}: no plan in its header, so it was not saved by usdcore"
        raise UsdcoreError(msg)
    plan = parse_plan(metadata[KEY], str(path))
    if plan.base is None:
        msg = f"{path}: its plan names no base model"
        raise UsdcoreError(msg)
    return plan


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Rebuild a compressed model from one file: in evaluation mode, where it skips; `train()` masks.

    Errors: a damaged file, an unknown base, a plan that does not fit it, a plugin that is missing (with its
    distribution), weights that do not fit the plan.
    """
    plan = read_plan(path)
    assert plan.base is not None
    model = shrink(create(plan.base), plan)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        model.load_state_dict(tensors, strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        msg = f"{path}: its weights do not fit its plan: {str(error).strip()}"
        raise UsdcoreError(msg) from None
    return model.to(device).eval()


def constructor_kwargs(base: Base) -> dict[str, object]:
    """Constructor arguments; a class may be named by its import path, as JSON can't hold one:
    'timm.layers:SwiGLUPacked'.
    """
    forbidden = FORBIDDEN & base.kwargs.keys()
    if forbidden:
        names = ", ".join(sorted(forbidden))
        msg = f"model.kwargs: {names} would load something else; kwargs describe the architecture alone"
        raise UsdcoreError(msg)
    return {key: _resolved(key, value) for key, value in base.kwargs.items()}


def _resolved(key: str, value: object) -> object:
    if not (isinstance(value, str) and value.startswith("timm.layers:")):
        return value
    name = value.partition(":")[2]
    found = getattr(timm.layers, name, None)
    kind = found.func if isinstance(found, functools.partial) else found
    if not isinstance(kind, type):
        msg = f"model.kwargs.{key}: timm.layers has no class {name!r}"
        raise UsdcoreError(msg)
    return found
