"""An optimizer's state, carried by parameter name from a model to the smaller one that surgery makes of it.

Slicing a parameter and slicing what has its shape (AdamW's two moments, a momentum, averaged weights) are the same
operation on the same axes, so the entries that survive go on as if the others had never been there: with their masks
at 0, those had no gradient and touched no other entry's step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from usdcore.surgery import slice_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from usdcore.surgery import Positions

Tensors = dict[str, Tensor]


@dataclass
class Named:
    """The state of one optimizer: per parameter name what it holds, and what its groups count beside their options.

    `notes` says in words what could not be carried.
    """

    kind: str
    state: dict[str, dict[str, Any]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def take(optimizer: torch.optim.Optimizer, model: nn.Module) -> Named:
    """What `optimizer` holds for the parameters of `model`, copied, without parameters that are not the model's."""
    named = Named(_kind(optimizer))
    if hasattr(optimizer, "base_optimizer"):
        named.notes.append(f"{named.kind} wraps another optimizer, whose state stays behind")
        return named
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            named.state[name] = {key: _copy(value) for key, value in optimizer.state[parameter].items()}
            named.shapes[name] = tuple(parameter.shape)
    options = {*optimizer.defaults, "params", "param_names", "lr", "initial_lr", "lr_scale"}
    named.groups = [{k: _copy(v) for k, v in group.items() if k not in options} for group in optimizer.param_groups]
    return named


def cut(named: Named, slices: Positions) -> Named:
    """The same for the model that surgery made (`Session.slices`): tensors of a parameter's shape are sliced like it.

    The state of a parameter that surgery touched and that holds a tensor of another shape (a factored moment) is
    dropped, with a note.
    """
    out = Named(named.kind, groups=named.groups, notes=list(named.notes))
    for name, state in named.state.items():
        axes = slices.get(name)
        shape = named.shapes[name]
        if axes is None:
            out.state[name], out.shapes[name] = state, shape
            continue
        odd = [k for k, v in state.items() if isinstance(v, Tensor) and v.numel() > 1 and tuple(v.shape) != shape]
        if odd:
            out.notes.append(f"{name}: {', '.join(odd)} does not have the weight's shape")
            continue
        out.state[name] = {k: slice_tensor(v, axes) if _has(v, shape) else v for k, v in state.items()}
        sizes = {axis: int(stays.sum()) for axis, stays in axes.items()}
        out.shapes[name] = tuple(sizes.get(axis, size) for axis, size in enumerate(shape))
    return out


def put(named: Named, optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Give the state to a fresh optimizer over (some of) `model`'s parameters; returns notes on what was not taken."""
    kind = _kind(optimizer)
    if kind != named.kind:
        return [f"the optimizer is {kind} now and was {named.kind}: its state starts afresh"]
    notes = list(named.notes)
    own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter not in own or name not in named.state:
            continue
        if named.shapes[name] != tuple(parameter.shape):
            notes.append(f"{name}: has another shape now")
            continue
        state = named.state[name]
        # A counter is a tensor without axes, which torch's optimizers keep on the host.
        optimizer.state[parameter] = {
            k: _copy(v).to(parameter.device) if isinstance(v, Tensor) and v.ndim else _copy(v) for k, v in state.items()
        }
    if len(named.groups) == len(optimizer.param_groups):
        for group, extra in zip(optimizer.param_groups, named.groups, strict=True):
            group.update({k: _copy(v) for k, v in extra.items()})
    return notes


def cut_tensors(tensors: Mapping[str, Tensor], slices: Positions) -> Tensors:
    """A model's state dict, sliced as surgery sliced the model."""
    return {name: slice_tensor(tensor, slices.get(name, {})) for name, tensor in tensors.items()}


@torch.no_grad()
def put_tensors(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy the tensors that the model still has, in the shape that it has them."""
    for name, own in model.state_dict().items():
        if name in tensors and tensors[name].shape == own.shape:
            own.copy_(tensors[name])


@dataclass
class Carried:
    """What a phase hands to the next: both optimizers' states and, where weights are averaged, the weights that are
    not.
    """

    optimizer: Named
    strategies: Named | None
    weights: Tensors | None

    def cut(self, slices: Positions) -> Carried:
        """For the model that surgery made."""
        return Carried(
            cut(self.optimizer, slices),
            cut(self.strategies, slices) if self.strategies else None,
            cut_tensors(self.weights, slices) if self.weights else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint that stands between two phases."""
        pair = {"optimizer": self.optimizer, "strategies": self.strategies}
        return {"weights": self.weights, **{k: vars(v) if v else None for k, v in pair.items()}}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Carried:
        """The inverse of `state_dict`."""
        strategies = state["strategies"]
        return cls(Named(**state["optimizer"]), Named(**strategies) if strategies else None, state["weights"])


def _kind(optimizer: torch.optim.Optimizer) -> str:
    return type(optimizer).__name__


def _has(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and tuple(value.shape) == shape


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
