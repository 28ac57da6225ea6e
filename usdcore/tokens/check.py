"""Whether tokens may be left out of a model's blocks: tried on random images, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from usdcore.errors import UsdcoreError
from usdcore.gates import ForwardState, TokenDraw
from usdcore.tokens.select import gathered, masked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

#: Largest difference of a block's output, as a share of its largest value.
TOLERANCE = 1e-4


@torch.no_grad()
def require_a_set(model: nn.Module, blocks: Iterable[str], input_shape: tuple[int, ...]) -> None:
    """Errors: a block for which leaving tokens out is not the same as masking them, because what it computes depends on
    where tokens stand (rotary embeddings, windows, biases), or because its attention is of a kind that is not met.

    The model is put in evaluation mode and run on two random images; its gates must be neutral.
    """
    modules = {name: model.get_submodule(name) for name in blocks}
    if not modules:
        return
    reference = next(model.parameters())
    images = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(reference)
    seen: dict[str, tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = {}

    def see(name: str) -> Any:
        return lambda _, args, kwargs: seen.setdefault(name, (args[0], args[1:], kwargs)) and None

    hooks = [module.register_forward_pre_hook(see(name), with_kwargs=True) for name, module in modules.items()]
    try:
        model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    for name, (x, args, kwargs) in seen.items():
        _require(name, modules[name], x, (args, kwargs))


def _require(name: str, module: nn.Module, x_BNC: Tensor, rest: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """One block; every second token or so is left out, differently in the two images."""
    generator = torch.Generator().manual_seed(0)
    keep = (torch.rand(x_BNC.shape[:2], generator=generator) < 0.6).to(x_BNC)
    keep[:, 0] = 1
    draws = [TokenDraw(keep)]

    def run(x: Tensor) -> Tensor:
        out: Tensor = type(module).forward(module, x, *rest[0], **rest[1])
        return out

    try:
        found = gathered(x_BNC, draws, keep, run, ForwardState(batch_size=len(x_BNC)))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        msg = f"{name}: its tokens can't be left out, as its code does not run with fewer: {error}"
        raise UsdcoreError(msg) from None
    expected = masked(x_BNC, draws, keep, run)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= TOLERANCE:
        msg = (
            f"{name}: its tokens can't be left out, as that is not the same as masking them (it differs by "
            f"{difference:.0e} of the maximum): what it computes depends on where tokens stand, or its attention is of "
            f"a kind that can't be masked"
        )
        raise UsdcoreError(msg)
