"""Which module of the student is matched with which of the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usdcore.errors import UsdcoreError
from usdcore_distill.config import PairConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    Stated = Sequence[int | str | PairConfig] | None


def layers_of(model: nn.Module, otherwise: Sequence[str]) -> list[str]:
    """The modules of a model's layers in order, as timm lists them (a plain ViT's blocks); else those of `otherwise`
    that the model has. A layer of which everything was pruned keeps its number.
    """
    modules = dict(model.named_modules())
    listed = getattr(model, "feature_info", None)
    if isinstance(listed, list):
        names = [str(layer["module"]) for layer in listed]
        if names and all(name in modules for name in names):
            return names
    return [name for name in otherwise if name in modules]


def pair_up(stated: Stated, student: Sequence[str], teacher: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of module names (student's, teacher's). `student` and `teacher` are the names of their layers.

    Errors: a number that is out of range, or used where a model's layers are not known.
    """
    wanted = [(len(student) - 1) // 2, -1] if stated is None else stated
    return list(dict.fromkeys(_pair(item, student, teacher) for item in wanted))


def _pair(item: int | str | PairConfig, student: Sequence[str], teacher: Sequence[str]) -> tuple[str, str]:
    if isinstance(item, PairConfig):
        return _named(item.student, student, "student"), _named(item.teacher, teacher, "teacher")
    if isinstance(item, str):
        return item, item
    name = _named(item, student, "student")
    _named(0, teacher, "teacher")
    depth = (student.index(name) + 1) / len(student)
    return name, teacher[max(0, round(depth * len(teacher)) - 1)]


def _named(item: int | str, layers: Sequence[str], who: str) -> str:
    if isinstance(item, str):
        return item
    if not layers:
        msg = (
            f"distill.features: the {who}'s layers have no numbers; name its modules: {{student: NAME, teacher: NAME}}"
        )
        raise UsdcoreError(msg)
    if not -len(layers) <= item < len(layers):
        msg = f"distill.features: the {who} has {len(layers)} layers (0 to {len(layers) - 1}), so there is no {item}"
        raise UsdcoreError(msg)
    return layers[item]
