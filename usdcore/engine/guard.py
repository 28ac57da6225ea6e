"""Bad numbers: a loss, a gradient or a gate that is not finite stops a step, and is traced to what made it.

On the CPU a number is read when it is there, so a bad step ends before any weight has changed. On an accelerator
reading would make the host wait: the step's verdict is copied in the background and read one step later, and a
checkpoint is only written of a state whose verdict is known. Either way the caller goes back to a good state, so no
weight that a bad number touched is ever kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from usdcore.engine.drawn import drawn_at
from usdcore.runner import CHILD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

    from usdcore.session import Session

GATES = f"{CHILD}.gates."
SMALL = 2**14
OVERFLOW = "the gradients are not finite, but each loss term's own are: their sum overflows"


@dataclass(frozen=True)
class Place:
    """A step of a stage; both count from 0."""

    stage: str
    epoch: int
    step: int

    def __str__(self) -> str:
        return f"phase {self.stage}, epoch {self.epoch + 1}, step {self.step + 1}"


class BadNumbers(Exception):
    """A step met a number that is not finite: `place`, and the `cause` in words."""

    def __init__(self, place: Place, cause: str) -> None:
        super().__init__(f"{place}: {cause}")
        self.place, self.cause = place, cause


class NotFinite(Exception):
    """Raised within a step, before its cause is known."""


@dataclass
class _Verdict:
    place: Place
    names: tuple[str, ...]
    finite: Tensor  # [terms + 1] on the host, the last one for the gradients
    event: torch.cuda.Event | None


class Guard:
    """Looks at a step's loss terms and at the norm of its gradients; with `lag`, one step later."""

    def __init__(self, lag: bool) -> None:
        self.lag = lag
        self._last: _Verdict | None = None

    def loss(self, loss: Tensor) -> None:
        """Between forward and backward. Errors: `NotFinite`."""
        if not self.lag and not math.isfinite(float(loss.detach())):
            raise NotFinite

    def gradients(self, place: Place, terms: Mapping[str, Tensor], norm: Tensor) -> None:
        """Between backward and the optimizer's step. Errors: `NotFinite`; with `lag`, `BadNumbers` of an earlier
        step.
        """
        if not self.lag:
            if not math.isfinite(float(norm)):
                raise NotFinite
            return
        self.settle()
        found = torch.isfinite(torch.stack([*(term.detach().float() for term in terms.values()), norm.float()]))
        self._last = _Verdict(place, tuple(terms), *_to_host(found))

    def settle(self) -> None:
        """Wait for the last step's verdict, where there is one. Errors: `BadNumbers`."""
        verdict, self._last = self._last, None
        if verdict is None:
            return
        if verdict.event is not None:
            verdict.event.synchronize()
        *terms, gradients = verdict.finite.tolist()
        bad = [name for name, is_finite in zip(verdict.names, terms, strict=True) if not is_finite]
        if bad:
            raise BadNumbers(verdict.place, f"not finite: {', '.join(bad)}")
        if not gradients:
            raise BadNumbers(verdict.place, "the gradients are not finite")


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if not values.is_cuda:
        return values.cpu(), None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return host, event


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients, shape []: not finite if any entry of any gradient is not."""
    gradients = [p.grad.reshape(-1) for p in parameters if p.grad is not None]
    # Small ones are put together first: for a hundred biases the calls would cost more than the numbers.
    small = [g for g in gradients if g.numel() <= SMALL]
    large = [g for g in gradients if g.numel() > SMALL]
    return torch.nn.utils.get_total_norm([*large, torch.cat(small)] if small else large)


def find_cause(session: Session, images: Tensor, forward: Callable[[], Mapping[str, Tensor]]) -> str:
    """What made a step's numbers bad, in words, from the outside in: images, weights, gates, loss terms, gradients.

    `forward` takes the step's forward again (its randomness is seeded, so it is the same one) and gives the loss terms
    by name. Slow: it is only called when a step has failed.
    """
    if not bool(torch.isfinite(images).all()):
        return "the images of this step hold values that are not finite; look at the data"
    weight = bad_weight(session.model)
    terms = forward()
    gates = bad_gates(session)
    bad = [name for name, term in terms.items() if not _finite(term)]
    parts = []
    if weight is not None and not weight.startswith(GATES):
        parts.append(f"the weights {weight} are not finite")
    elif gates:
        parts.append(f"the value of {gates[0]} is not finite")
    elif weight is not None:
        parts.append(f"the weights of {_parameter(weight)} are not finite")
    if bad and len(bad) < len(terms):
        parts.append(" and ".join(f"{_term(session, name)} is {float(terms[name].detach())}" for name in bad))
    elif bad:
        parts.append(f"every loss term is not finite ({', '.join(bad)})" if len(bad) > 1 else "the loss is not finite")
    else:
        parts += _bad_gradients(session, terms)
    return "; ".join(parts) or OVERFLOW


def agreed(causes: Sequence[str]) -> str:
    """The causes that processes found, where they found one, each for those of the batch's rows that it has."""
    if len(set(causes)) == 1:
        return causes[0]
    found = [f"process {rank}: {cause}" for rank, cause in enumerate(causes) if cause != OVERFLOW]
    return ". ".join(found)


def bad_weight(model: nn.Module) -> str | None:
    """The first parameter, gates last, that is not finite. Takes a pass over all of them: for once an epoch."""
    return next((name for name, parameter in model.named_parameters() if not _finite(parameter)), None)


def bad_gates(session: Session) -> list[str]:
    """The gates whose own value is not finite in the last forward, as "the gate of STRATEGY at SITE", in its order."""
    gating = session.gating
    if gating is None:
        return []
    found = []
    for key, gate in gating.gates.items():
        strategy = key.partition("@")[0].replace("/", ".")
        for site in gate.sites:  # type: ignore[union-attr]
            keep = drawn_at(gating, key, site)
            if keep is not None and not _finite(keep):
                found.append(f"the gate of {strategy} at {site}")
    return found


def _bad_gradients(session: Session, terms: Mapping[str, Tensor]) -> list[str]:
    """Each loss term whose own gradient is not finite, with the first parameter where that shows."""
    named = [(name, p) for name, p in session.model.named_parameters() if p.requires_grad]
    parts = []
    for name, term in terms.items():
        if not term.requires_grad:
            continue
        gradients = torch.autograd.grad(term, [p for _, p in named], retain_graph=True, allow_unused=True)
        pairs = zip(named, gradients, strict=True)
        first = next((where for (where, _), g in pairs if g is not None and not _finite(g)), None)
        if first is not None:
            parts.append(f"the gradient of {_term(session, name)} is not finite (at {_parameter(first)})")
    return parts


def _term(session: Session, name: str) -> str:
    if name == "task":
        return "the task's loss"
    owner = session.owners.get(name)
    return f"the loss term {name}" + (f" of {owner}" if owner else "")


def _parameter(name: str) -> str:
    if not name.startswith(GATES):
        return name
    strategy, _, site = name.removeprefix(GATES).partition("@")
    return f"the gate of {strategy} at {site.partition('.')[0].replace('/', '.')}"


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())
