"""The law about training: terms that can be added, parameters that learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from usdcore.testing.laws import Broken, NotTried
from usdcore.testing.models import batch
from usdcore.testing.trial import Trial

if TYPE_CHECKING:
    from usdcore.testing.subject import Subject


def learns(subject: Subject) -> None:
    """Every loss term is a finite number; every parameter given to `site.param_group` gets a gradient in some step;
    every parameter of a gate that takes one was given.
    """
    trial = Trial(subject, subject.models[0]).begin()
    given = [parameter for group in trial.session.parameter_groups for parameter in group.parameters]
    named = [(f"{site}: {name}", p) for site, gate in trial.own.gates.items() for name, p in gate.named_parameters()]
    forgotten = [name for name, p in named if p.requires_grad and all(p is not other for other in given)]
    if forgotten:
        do = "give them to site.param_group(ParameterGroup([...])), or set requires_grad to False"
        raise Broken(trial.where, f"nothing trains the gate's parameter {forgotten[0]}", do)
    learned: set[int] = set()
    trial.session.model.train()
    terms: set[str] = set()
    for step in range(subject.steps):
        trial.forward(step, *batch(step)).backward()  # type: ignore[no-untyped-call]
        for name, term in trial.terms.items():
            if term.numel() != 1 or not bool(torch.isfinite(term.detach()).all()):
                what = f"the loss term {name!r} is {term.detach().tolist()} in step {step}"
                raise Broken(trial.where, what, "losses() must give finite scalars")
        learned |= {id(parameter) for parameter in given if parameter.grad is not None}
        terms |= trial.terms.keys()
        trial.update()
    idle = [number for number, parameter in enumerate(given) if id(parameter) not in learned]
    if idle:
        what = f"{len(idle)} of the {len(given)} parameters that it trains never get a gradient"
        do = "a term of losses() or a gate's draw in training must depend on each; keep what is not learned out of it"
        raise Broken(trial.where, what, do)
    if not given and not terms:
        raise NotTried("it adds no loss and trains nothing of its own")
