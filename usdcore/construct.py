"""The base model of a plan, built by timm from a name and arguments that may come from a stranger's file.

Only what describes an architecture gets through: no argument that loads, fetches or replaces something, no value that
timm would have to look up outside its own layers, and no more of anything than the file accounts for.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import timm
import timm.layers
import torch
from timm.models import build_model_with_cfg
from torch import nn
from torch.nn.modules import module as registration

from usdcore.backbones import require_base
from usdcore.errors import UsdcoreError, brief
from usdcore.units import find_units

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from usdcore.plans import Base
    from usdcore.units.types import Units

#: Arguments of timm's that load files, reach the network, wrap the model or change timm itself. Its two factory
#: functions' own parameters are all of that kind, in every version.
FORBIDDEN = frozenset(
    {
        *inspect.signature(timm.create_model).parameters,
        *inspect.signature(build_model_with_cfg).parameters,
        *("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "model_name"),
        *("num_classes", "features_only", "feature_cls", "out_indices", "pruned", "device", "dtype"),
    }
)

LARGEST = 65_536
"""Of any number in the arguments: sizes and counts of models stay below."""
LONGEST = 64
"""Entries of a list in the arguments."""


def create(base: Base) -> nn.Module:
    """The base model with fresh weights. Errors: a name that timm does not know, a backbone whose plugin is missing,
    arguments that are refused or that load.
    """
    require_base(base)
    kwargs = constructor_kwargs(base)
    try:
        model: nn.Module = timm.create_model(base.name, pretrained=False, num_classes=base.num_classes, **kwargs)
    except UsdcoreError:
        raise
    except Exception as error:  # what a constructor raises for nonsense is of any kind
        reason = brief(f"{type(error).__name__}: {error}", 300)
        msg = f"timm can't make {base.name} with {brief(json.dumps(base.kwargs), 300)} ({reason}); change model.kwargs"
        raise UsdcoreError(msg) from error
    return model


def units_of(base: Base) -> Units:
    """The units of the base model, made on the meta device, or, where it reads values while it is made, with random
    weights. Errors: as `create` and `find_units`.
    """
    try:
        with torch.device("meta"):
            model = create(base)
    except (UsdcoreError, NotImplementedError):
        model = create(base)
    return find_units(model, torch.zeros(1, *base.input_shape, device="meta"))


def constructor_kwargs(base: Base) -> dict[str, object]:
    """Constructor arguments; a class may be named by its import path, as JSON can't hold one:
    'timm.layers:SwiGLUPacked'.

    Errors: arguments that would load something, values that are none of an architecture's.
    """
    forbidden = FORBIDDEN & base.kwargs.keys()
    if forbidden:
        names = ", ".join(sorted(forbidden))
        msg = f"model.kwargs: {names} would load something else; kwargs describe the architecture alone: remove it"
        raise UsdcoreError(msg)
    for key, value in base.kwargs.items():
        reason = _objection(value)
        if reason is not None or not key.isidentifier():
            msg = f"model.kwargs.{brief(key)}: {reason or 'no name of an argument'}; remove or correct it"
            raise UsdcoreError(msg)
    return {key: _resolved(key, value) for key, value in base.kwargs.items()}


@contextmanager
def at_most(num_tensors: int, num_elements: int, refusal: str | None = None) -> Iterator[None]:
    """Stop any construction of modules in this thread that makes more parameters and buffers than that.

    An argument such as depth=60000 is found out after the first layers too many. Errors: `UsdcoreError`, with the text
    `refusal`; default: what is wrong with a plan that came from a file.
    """
    thread, tensors, elements = threading.get_ident(), 0, 0

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, elements
        if tensor is None or threading.get_ident() != thread:
            return
        tensors, elements = tensors + 1, elements + tensor.numel()
        if tensors > num_tensors or elements > num_elements:
            msg = refusal or (
                f"its plan builds a model of more than {num_tensors} tensors or {num_elements} numbers, far more than "
                "the file accounts for; fetch the file again from a source that you trust"
            )
            raise UsdcoreError(msg)

    handles = (
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _objection(value: object, depth: int = 0) -> str | None:
    """Why a value can't describe an architecture; None where it can."""
    if isinstance(value, str):
        is_plain = value.isprintable() and len(value) <= 100 and not set(value) & set("/\\~")
        return None if is_plain else f"{brief(value)!r} is no name of a layer or a mode"
    if isinstance(value, int | float):
        return None if abs(value) <= LARGEST and math.isfinite(value) else f"a number beyond {LARGEST}"
    if isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        if depth > 3 or len(value) > LONGEST:
            return f"nested deeper than 4, or more than {LONGEST} values"
        return next((found for item in items if (found := _objection(item, depth + 1)) is not None), None)
    return None if value is None else f"a {type(value).__name__}"


def _resolved(key: str, value: object) -> object:
    if not (isinstance(value, str) and value.startswith("timm.layers:")):
        return value
    name = value.partition(":")[2]
    found = getattr(timm.layers, name, None)
    kind = found.func if isinstance(found, functools.partial) else found
    # Only layers: timm.layers also has classes that switch timm's own settings when they are called.
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        msg = f"model.kwargs.{key}: timm.layers has no class {brief(name)!r} of a layer; name one that it has"
        raise UsdcoreError(msg)
    return found
