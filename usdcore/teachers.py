"""Teachers: frozen models beside the one that is trained, and taps that show what passes a module of either.

A teacher belongs to the session, not to the model: it is never saved, averaged or shrunk with it. Strategies that name
the same one share it, and it runs once a step however many of them ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.errors import UsdcoreError, nearest

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from usdcore.strategy import StepContext


def primary(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The logits that the task's loss is taken of: a model that trains a distillation token gives a pair, class token
    first.
    """
    return output if isinstance(output, Tensor) else output[0]


def no_dense() -> nn.Module:
    """For a run that has not come to its dense model yet. Errors: always."""
    msg = (
        "there is no dense teacher in this phase: it is the model as it enters the first phase that compresses; name "
        "the strategy that learns from it there, or give it another teacher"
    )
    raise UsdcoreError(msg)


class Tap:
    """What a module gave in the last forward; None before the first one, and when it is closed.

    Errors: the model has no such module.
    """

    def __init__(self, model: nn.Module, module: str) -> None:
        modules = dict(model.named_modules())
        if module not in modules:
            names = [name for name in modules if name]
            msg = f"{type(model).__name__} has no module named {module!r} to watch: {nearest(module, names)}"
            raise UsdcoreError(msg)
        self.module = module
        self.value: Tensor | None = None
        self.is_open = True
        self._handle: RemovableHandle | None = modules[module].register_forward_hook(self._take)

    def __deepcopy__(self, memo: dict[int, object]) -> Tap:
        """A copy of the model (averaged weights) is not watched."""
        copied = object.__new__(Tap)
        copied.module, copied.value, copied.is_open, copied._handle = self.module, None, False, None
        return copied

    def _take(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.is_open:
            self.value = primary(output)

    def close(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self.value = None
        self.is_open = False


class Teacher:
    """A model in evaluation mode whose parameters never get a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self._step: object = None
        self._logits: Tensor | None = None

    def logits(self, ctx: StepContext) -> Tensor:
        """The teacher's logits for this step's images, [B, K]. Errors: the training loop did not hand over the images.

        Taps on the teacher show this step's features afterwards.
        """
        if ctx.images is None:
            msg = "a strategy needs its teacher's view of the images: call session.begin_step(..., images=images)"
            raise UsdcoreError(msg)
        if self._step is not ctx or self._logits is None:
            with torch.no_grad():
                self._logits = primary(self.model(ctx.images))
            self._step = ctx
        return self._logits
