"""Make the teacher that the options name, and check that it can teach this student."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import timm
from timm.models import get_pretrained_cfg

from usdcore.artifact import constructor_kwargs, create, load, read_plan
from usdcore.backbones import require_model
from usdcore.engine.weights import fill, read_weights
from usdcore.errors import UsdcoreError, nearest
from usdcore.plans import Base
from usdcore_distill.probe import probe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from usdcore.strategy import Attachment
    from usdcore.teachers import Teacher
    from usdcore_distill.config import TeacherConfig


def find_teacher(site: Attachment, config: TeacherConfig | str, needs_logits: bool) -> Teacher:
    """The session's teacher of this description, made where it is new.

    Errors: a model that can't be made or loaded, that does not take the student's images, or (where its logits are
    needed) that knows other classes.
    """
    if isinstance(config, str):
        return site.teacher(config)
    base = stated_base(config)
    teacher = site.teacher(config.model_dump_json(), partial(_build, config, base, site.is_dry))
    name = str(config.file or config.model)
    taught = _tried(site, teacher.model, name, base)
    learned, _ = probe(site.model, site.input_shape)
    if needs_logits and taught.shape[1:] != learned.shape[1:]:
        msg = (
            f"distill.teacher: {name} has {_words(taught)}, the model that learns from it has {_words(learned)}: "
            f"they must know the same classes, unless kind is features"
        )
        raise UsdcoreError(msg)
    return teacher


def stated_base(config: TeacherConfig) -> Base:
    """What the teacher is built from, and made for. Errors: no such file, no such model or tag."""
    if config.file is not None:
        try:
            base = read_plan(config.file).base
        except UsdcoreError as error:
            msg = f"distill.teacher.file: {error}"
            raise UsdcoreError(msg) from error
        assert base is not None  # read_plan refuses a file without one
        return base
    assert config.model is not None
    name = config.model.partition(".")[0] if config.pretrained else config.model
    try:
        require_model(name)
    except UsdcoreError as error:
        msg = f"distill.teacher: {error}"
        raise UsdcoreError(msg) from error
    try:
        known = get_pretrained_cfg(config.model, allow_unregistered=False)
    except RuntimeError:
        tags = [full for full in timm.list_pretrained() if full.partition(".")[0] == name]
        msg = f"distill.teacher: timm has no weights {config.model!r}: {nearest(config.model, tags)}"
        raise UsdcoreError(msg) from None
    if config.weights is not None and not config.weights.is_file():
        where = "check the path, which is relative to the current folder"
        msg = f"distill.teacher.weights: {config.weights}: no such file; {where}"
        raise UsdcoreError(msg)
    base = Base(name=name, kwargs=config.kwargs, num_classes=1, input_shape=known.input_size)
    # There are weights without a classifier, from which features can be learned: 0 classes, which a plan can't have.
    return base.model_copy(update={"num_classes": known.num_classes})


def _build(config: TeacherConfig, base: Base, is_dry: bool) -> nn.Module:
    """The model with its weights; in a dry run timm's are not fetched."""
    if config.file is not None:
        return load(config.file)
    if config.weights is not None:
        state = read_weights(config.weights, "distill.teacher.weights")
        model = create(_as_saved(base, state))
        fill(model, state, f"distill.teacher.weights: {config.weights}, for {base.name} as its kwargs say,")
        return model
    if is_dry:
        return create(base)
    try:
        fetched: nn.Module = timm.create_model(config.model, pretrained=True, **constructor_kwargs(base))
    except Exception as error:  # the hub raises many kinds; each means the same to the user
        msg = f"distill.teacher: the weights of {config.model} can't be fetched ({error}); give weights: FILE instead"
        raise UsdcoreError(msg) from error
    return fetched


def _as_saved(base: Base, state: dict[str, Tensor]) -> Base:
    """The base with as many classes and input channels as the weights are for."""
    known = get_pretrained_cfg(base.name, allow_unregistered=False)
    heads = [known.classifier] if isinstance(known.classifier, str) else list(known.classifier or ())
    head = next((state[f"{name}.weight"] for name in heads if f"{name}.weight" in state), None)
    stem = state.get(f"{known.first_conv}.weight")
    kwargs = base.kwargs
    if stem is not None and stem.ndim == 4 and stem.shape[1] != base.input_shape[0]:
        kwargs = {"in_chans": stem.shape[1], **kwargs}
    if head is not None or heads:
        base = base.model_copy(update={"num_classes": 0 if head is None else head.shape[0]})
    return base.model_copy(update={"kwargs": kwargs})


def _tried(site: Attachment, teacher: nn.Module, name: str, base: Base) -> Tensor:
    """The teacher's logits of one blank image."""
    try:
        return probe(teacher, site.input_shape)[0]
    except Exception as error:  # timm asserts, torch's kernels raise: each model says it in its own way
        msg = (
            f"distill.teacher: {name} can't take this run's images of {list(site.input_shape)} (channels, height, "
            f"width); {base.name} is made for {list(base.input_shape)} unless kwargs say otherwise: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}"
        )
        raise UsdcoreError(msg) from error


def _words(logits: Tensor) -> str:
    return f"{logits.shape[1]} logits" if logits.ndim == 2 else f"outputs {list(logits.shape[1:])}"
