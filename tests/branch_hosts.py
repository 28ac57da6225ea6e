"""Blocks that add their residual branches in every style that the finder has to read."""

from __future__ import annotations

from functools import wraps

import torch
from torch import Tensor, nn

DIM = 12


def feed() -> nn.Module:
    """A feed-forward with its norm."""
    return nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 20), nn.GELU(), nn.Linear(20, DIM))


class Two(nn.Module):
    """Two feed-forwards and a scale for each; how they are added is the subclass's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = feed(), feed()
        self.gamma = nn.Parameter(torch.ones(DIM))
        self.post = nn.LayerNorm(DIM)
        self.num_calls = 0


class Plain(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        return self.b(x) + x


class Scaled(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.a(x)
        x += self.b(x)
        return x


class Statements(Two):
    """The branch is prepared in statements before the sum, under a condition, and one name serves both branches."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = self.a(x)
        if self.gamma is not None:
            y = self.gamma * y
        x = x + scale * y
        y = self.b(x)
        shape = y.shape
        y = y.reshape(shape)
        x = x + y
        return x


class Shortcut(Two):
    """The stream waits in a variable while its name is used for the branch."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.a(x)
        x = x * self.gamma
        x = shortcut + x
        shortcut = x
        x = self.b(x)
        return x + shortcut


class Post(Two):
    """The norm follows the sum; a helper method computes a branch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.post(x + self._first(x))
        return x + self.b(x)

    def _first(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        return self.gamma * self.a(x.reshape(batch * tokens, width)).reshape(batch, tokens, width)


class Inherited(Plain):
    """Nothing of its own."""


class TwoWays(Two):
    """Chooses between two codes by whether there is a scale."""

    def forward(self, x: Tensor) -> Tensor:
        if self.gamma is None:  # noqa: SIM108
            x = x + self.a(x)
        else:
            x = x + self.gamma * self.a(x)
        return x + self.b(x)


class OverLines(Two):
    def forward(
        self,
        x: Tensor,
    ) -> Tensor:
        x = x + self.gamma * self.a(
            x,
        )
        return (
            x.contiguous()
            + self.b(x)
        )  # fmt: skip


class Wrapping(Two):
    """Wraps the forward of every class derived from it."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        forward = cls.forward

        @wraps(forward)
        def wrapper(self: Wrapping, *args: Tensor) -> Tensor:
            self.num_calls += 1
            return forward(self, *args)

        cls.forward = wrapper  # type: ignore[method-assign]


class Derived(Wrapping):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        return x + self.gamma * self.b(x)


GATEABLE = (Plain, Scaled, Statements, Shortcut, Post, Inherited, TwoWays, OverLines, Derived)


class Wrapped(Plain):
    """The sums are in the forward of the parent class."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Elsewhere(Two):
    """The branch's result is used a second time."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        x = x + y
        return x + self.b(x) * y.mean()


class Sized(Two):
    """The branch reads a size of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = x + self.a(x).reshape(batch, -1, DIM)
        return x + self.b(x)


class Looped(Two):
    def forward(self, x: Tensor) -> Tensor:
        for part in (self.a, self.b):
            x = x + part(x)
        return x


def _added(x: Tensor, y: Tensor) -> Tensor:
    return x + y


class Function(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = _added(x, self.a(x))
        return torch.add(x, self.b(x))


class Decorated(Two):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        return x + self.b(x)


class Base(Two):
    def first(self, x: Tensor) -> Tensor:
        return self.a(x)


class Super(Base):
    """The branch needs the method that it stands in."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + super().first(x)
        return x + self.b(x)


class Conditional(Two):
    """The sum is in a condition, what it adds is not."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.num_calls == 0:
            x = x + y
        return x + self.b(x)


REFUSED = {
    Wrapped: "is not in a method of",
    Elsewhere: "reads y of the branch elsewhere",
    Sized: "reads batch, which the method computes before",
    Looped: "reads part, which the method computes before",
    Function: "is not in a method of",
    Decorated: "is not in a method of",
    Super: "can't become a function of its own",
    Conditional: "stands apart from the sum",
}


class Stack(nn.Module):
    """Blocks on tokens [B, N, DIM]."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.head = nn.Linear(DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))
