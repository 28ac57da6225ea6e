"""Matching what passes inside the student with what passes inside the teacher.

Shape legend: B batch, N tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.strategy import ParameterGroup
from usdcore_distill.layers import layers_of, pair_up
from usdcore_distill.losses import feature_gap
from usdcore_distill.probe import probe

if TYPE_CHECKING:
    from usdcore.strategy import Attachment
    from usdcore.teachers import Tap
    from usdcore_distill.config import FeaturesConfig


@dataclass(frozen=True)
class Pair:
    """Two watched modules, from which token on they are compared, and the map between widths where they differ."""

    student: Tap
    teacher: Tap
    first: tuple[int, int]
    projection: nn.Linear | None


class FeatureMatch:
    """The pairs of a phase, and the linear maps between widths, which outlive it."""

    def __init__(self) -> None:
        self.projections: dict[str, nn.Linear] = {}
        self.pairs: list[Pair] = []

    def attach(self, site: Attachment, teacher: nn.Module, config: FeaturesConfig) -> None:
        """Watch the modules that `config` names in both models. Errors: modules that are not there, what is no tokens,
        token counts that do not agree.
        """
        student_layers = layers_of(site.model, [block.name for block in site.units.blocks])
        names = pair_up(config.layers, student_layers, layers_of(teacher, student_layers))
        _, seen = probe(site.model, site.input_shape, [name for name, _ in names])
        _, taught = probe(teacher, site.input_shape, [name for _, name in names])
        self.pairs = []
        for own, other in names:
            first = _first_tokens(own, seen[own], site.model, other, taught[other], teacher)
            width, wanted = seen[own].shape[-1], taught[other].shape[-1]
            projection = None if width == wanted else self._projection(f"{own} {other}", width, wanted).to(seen[own])
            self.pairs.append(Pair(site.tap(own), site.tap(other, teacher), first, projection))
        learned = [p for pair in self.pairs if pair.projection is not None for p in pair.projection.parameters()]
        site.param_group(ParameterGroup(learned, lr=config.lr))

    def loss(self) -> Tensor:
        """The mean over pairs, shape [], after both models' forwards."""
        return torch.stack([self._gap(pair) for pair in self.pairs]).mean()

    def state_dict(self) -> dict[str, Any]:
        """The linear maps, by pair."""
        return {name: {"weight": p.weight, "bias": p.bias} for name, p in self.projections.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, in place where a map is there: an optimizer may hold it already."""
        for name, saved in state.items():
            wanted, width = saved["weight"].shape
            self._projection(name, width, wanted).load_state_dict(saved)

    def _projection(self, name: str, width: int, wanted: int) -> nn.Linear:
        found = self.projections.get(name)
        if found is None or (found.in_features, found.out_features) != (width, wanted):
            # A run that goes on has it already: what other strategies draw after this must not depend on it.
            with torch.random.fork_rng(devices=[]):
                found = self.projections[name] = nn.Linear(width, wanted)
        return found

    def _gap(self, pair: Pair) -> Tensor:
        student_BNC, teacher_BNC = pair.student.value, pair.teacher.value
        if student_BNC is None or teacher_BNC is None:
            tap = pair.student if student_BNC is None else pair.teacher
            msg = f"distill.features: {tap.module} was not run in this step, so there is nothing to match"
            raise UsdcoreError(msg)
        student_BNC = student_BNC[:, pair.first[0] :]
        if pair.projection is not None:
            student_BNC = pair.projection(student_BNC)
        return feature_gap(student_BNC, teacher_BNC[:, pair.first[1] :])


def _first_tokens(
    own: str, student_BNC: Tensor, student: nn.Module, other: str, teacher_BNC: Tensor, teacher: nn.Module
) -> tuple[int, int]:
    """Where the tokens that both have begin: at the first one, or behind class and distillation tokens, where one of
    the two models has more of these.
    """
    for who, name, x in (("student", own, student_BNC), ("teacher", other, teacher_BNC)):
        if x.ndim != 3:
            msg = f"distill.features: the {who}'s {name} gives {list(x.shape[1:])} per image, not tokens [N, C]"
            raise UsdcoreError(msg)
    counts = student_BNC.shape[1], teacher_BNC.shape[1]
    extra = getattr(student, "num_prefix_tokens", None), getattr(teacher, "num_prefix_tokens", None)
    prefix = (0, 0) if extra[0] is None or extra[1] is None else (int(extra[0]), int(extra[1]))
    if counts[0] - prefix[0] == counts[1] - prefix[1]:
        return (0, 0) if prefix[0] == prefix[1] else prefix
    msg = (
        f"distill.features: the student's {own} gives {counts[0]} tokens, {prefix[0]} of them class and distillation "
        f"tokens, the teacher's {other} {counts[1]} and {prefix[1]}: their patches do not correspond, so name layers "
        f"with as many, or another teacher"
    )
    raise UsdcoreError(msg)
