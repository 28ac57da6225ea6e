"""Remove a residual branch from a model for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from usdcore import rewrite
from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from usdcore.units.types import BlockUnit, Branch


class Gone(nn.Module):
    """What stands where a module was removed, as hosts may ask it for a number or a flag: no tensors, no forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        own = set(vars(self))
        plain = {name: value for name, value in vars(module).items() if name not in own}
        vars(self).update({name: value for name, value in plain.items() if not isinstance(value, Tensor)})
        for name in (*module._parameters, *module._buffers):
            self.register_parameter(name, None)
        for name, child in module.named_children():
            self.add_module(name, Gone(child))
        self.train(module.training)


def drop_branch(model: nn.Module, block: BlockUnit, branch: Branch) -> None:
    """Remove a branch for good, in place: its modules and tensors go, and the block's code no longer has it.

    A tensor leaves an empty one behind: hosts ask whether a scale is None to choose between two codes.
    """
    if branch.reason is not None or branch.sum is None:
        msg = f"{branch.name} can't be removed: {branch.reason}"
        raise UsdcoreError(msg)
    rewrite.edit(model.get_submodule(block.name), [branch.sum.edit("drop")])
    for path in branch.modules:
        parent, _, child = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, Gone(owner.get_submodule(child)))
    for path in branch.tensors:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        held: Tensor | None = owner._parameters.pop(name, None)
        held = owner._buffers.pop(name, None) if held is None else held
        assert held is not None
        owner.__dict__[name] = held.new_zeros(0).detach()
