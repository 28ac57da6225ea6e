"""The forward and backward of training steps under `torch.compile`; the model itself stays the plain module that it is.

What is compiled is one graph, from the images to the logits: what gates draw without the stream is drawn before it, and
losses follow it. Where torch can't make one graph of a model and its gates, or would have to make another in every few
steps, the plain forward goes on in its place, and says so once: no step is slow in silence.
"""

from __future__ import annotations

import re
import time
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from usdcore.errors import UsdcoreError, brief
from usdcore.runner import gating_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

#: Needs no compiler: the graphs that torch sees are run as they are, or after those of the backward were made.
WITHOUT_COMPILER = ("eager", "aot_eager")

#: Compilations of one forward; torch's own limit is as many, but timm lifts that for all code when it is imported.
MOST = 8
#: As the module `warnings` holds it: action, message, category, module, line.
FROM_TORCH = ("ignore", None, Warning, re.compile(r"torch\."), 0)
OFTEN = f"something in it that is no tensor changes from step to step, and it was compiled {MOST} times already"


class Compiling(Protocol):
    """Options of a recipe."""

    @property
    def backend(self) -> str:
        """torch.compile's."""

    @property
    def mode(self) -> str:
        """torch.compile's."""


class CompiledForward:
    """Calls `model` with its forward compiled. Weights, names, hooks and every other call of the model are untouched.

    `say` is given a line for each compilation, and the reason where the plain forward takes over for good.
    """

    def __init__(
        self, model: nn.Module, backend: str = "inductor", mode: str = "default", say: Callable[[str], None] = print
    ) -> None:
        self.model, self.say = model, say
        #: How often torch has compiled the forward; a first time, and where sizes or numbers change, a few more.
        self.compilations = 0
        #: Why the plain forward runs; None while it does not.
        self.reason: str | None = None
        self._plain = model.forward
        self._compiled = torch.compile(_own_code(self._plain), **_options(backend, mode), fullgraph=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `model(...)` gives, with its gradients."""
        if self.reason is not None:
            return self.model(*args, **kwargs)
        known = self.model.__dict__
        before = known.get("forward")
        known["forward"] = self._forward
        try:
            return self.model(*args, **kwargs)
        finally:
            del known["forward"]
            if before is not None:
                known["forward"] = before

    def gives_up(self, error: Exception) -> bool:
        """Whether the plain forward runs from now on because of an error: one of torch's, about what it compiles."""
        if self.reason is not None or not isinstance(error, _failures()):
            return False
        self._stop(_said(error))
        return True

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """In the place of the model's forward, behind its hooks that begin one."""
        gating = gating_of(self.model)
        if gating is not None:
            gating.prepare()
        graphs, started = _graphs(), time.perf_counter()
        try:
            with _quiet():
                output = self._compiled(*args, **kwargs)
        except Exception as error:
            if not self.gives_up(error):
                raise
            # Nothing of the forward has run yet, and the generators are as they were.
            return self._plain(*args, **kwargs)
        if _graphs() > graphs:
            self.compilations += 1
            again = "" if self.compilations == 1 else f" for the {self.compilations}. time"
            self.say(f"forward compiled{again} in {time.perf_counter() - started:.1f} s; its backward follows")
            if self.compilations == MOST:
                self._stop(OFTEN)
        return output

    def _stop(self, reason: str) -> None:
        self.reason = brief(reason, 300)
        self.say(f"not compiled, so it takes plain steps: {self.reason}")


def forward_of(model: nn.Module, options: Compiling | None, say: Callable[[str], None]) -> Callable[..., Any]:
    """The model, or the same compiled as options say."""
    return model if options is None else CompiledForward(model, options.backend, options.mode, say)


def require_compiler(device: torch.device, backend: str, mode: str) -> None:
    """Compile one operation on `device`. Errors: that can't be done here, with torch's reason and what to do."""
    if backend in WITHOUT_COMPILER:
        return
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        if device.type == "cpu":
            # By itself, as what was compiled here before would be found again without one.
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()
        with _quiet():
            function = torch.compile(_own_code(lambda x: (x.sin() * x).sum()), **_options(backend, mode))
            function(x).backward()
    except Exception as error:  # compilers fail in many ways
        need = "a C++ compiler (g++ or clang++)" if device.type == "cpu" else "a C compiler, and Triton"
        msg = (
            f"torch.compile with the backend {backend} does not work here on {device.type} "
            f"({brief(_said(error), 200)}): install {need}, or use compile: false"
        )
        raise UsdcoreError(msg) from error


def _failures() -> tuple[type[Exception], ...]:
    """What torch raises where it does not compile, or not again."""
    from torch._dynamo import exc

    return (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings, which are about its compiler. Not by `catch_warnings`, which makes Python show in every
    step what it has shown already.
    """
    filters = cast("list[Any]", warnings.filters)
    filters.insert(0, FROM_TORCH)
    try:
        yield
    finally:
        with suppress(ValueError):  # a forward may reset them
            filters.remove(FROM_TORCH)


def _options(backend: str, mode: str) -> dict[str, Any]:
    return {"backend": backend} if mode == "default" else {"backend": backend, "mode": mode}


def _own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls `function`, with code of its own: torch keeps what it compiled, and counts how often it
    did, by code, which all models of a class share.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    forward.__code__ = forward.__code__.replace(co_name=forward.__code__.co_name)
    return forward


def _graphs() -> int:
    """How many graphs torch has made so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _said(error: BaseException) -> str:
    """An error in a line: what torch says first, and where in the code."""
    if type(error).__name__ == "FailOnRecompileLimitHit":
        return OFTEN
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    explained = next((line.partition(":")[2].strip() for line in lines if line.startswith("Explanation:")), "")
    places = [line for line in lines if line.startswith('File "')]
    return ", ".join(part for part in (first, explained, *places[-1:]) if part)
