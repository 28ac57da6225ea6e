"""Nothing in a model is left at a value that would hide a mistake: zoo.randomise, for every family."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from zoo import randomise as randomise_plain


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, biases, norms by their class rather than name, tables, temperatures, and running statistics."""
    randomise_plain(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for module in model.modules():
        is_norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm and name == "weight":
                parameter.copy_(0.7 + 0.3 * noise(parameter))
            elif parameter.ndim > 1 and not name.endswith("weight"):
                parameter.copy_(0.5 * noise(parameter))  # position embeddings, bias tables, tokens, temperatures
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.copy_(noise(module.running_mean))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model
