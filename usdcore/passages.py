"""A child module that the result of a call in a host's code goes through, where a host uses a weight without calling
its module (`F.linear(x, self.qkv.weight, bias)`): a factor, or gaps, can be put there as at any module's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from usdcore import rewrite

if TYPE_CHECKING:
    from usdcore.rewrite import Edit


class Passage(nn.Module):
    """What comes in goes out; without parameters or buffers of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x


def module_at(model: nn.Module, path: str, edit: Edit | None) -> nn.Module:
    """The module `path`; where it is a passage that is not there yet (`edit` says where), it is made, in place."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    if edit is not None and name not in owner._modules:
        owner.add_module(name, Passage().train(owner.training))
        rewrite.edit(owner, [edit])
    return model.get_submodule(path)


def close(model: nn.Module) -> None:
    """Take passages off again that have no gaps and no hooks, in place."""
    for owner in list(model.modules()):
        edits = rewrite.original(type(owner))[1]
        passes = {rewrite.child_of(edit): edit for edit in edits if edit.kind == "pass"}
        idle = [name for name in passes if _is_idle(owner._modules[name])]
        if idle:
            rewrite.unedit(owner, "pass")
            rewrite.edit(owner, [edit for name, edit in passes.items() if name not in idle])
            for name in idle:
                del owner._modules[name]


def _is_idle(module: nn.Module | None) -> bool:
    return type(module) is Passage and not module._forward_hooks and not module._forward_pre_hooks
