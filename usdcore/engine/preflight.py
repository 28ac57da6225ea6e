"""What can be known of a recipe before any data are read and any model is trained, although it needs torch and timm.

`usdcore plan` and the start of `usdcore run` both look: a misspelt optimizer of the last phase must not wait for it.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from pydantic import BaseModel
from timm.layers import PatchEmbed
from timm.optim import create_optimizer_v2, list_optimizers

from usdcore.backbones import require_model
from usdcore.check import outputs
from usdcore.compiled import require_compiler
from usdcore.construct import FORBIDDEN, at_most, create
from usdcore.engine.setup import make_base
from usdcore.errors import UsdcoreError, brief, nearest
from usdcore.hooks import registry
from usdcore.hooks.reference import field_references
from usdcore.recipe.problems import Problem, RecipeError
from usdcore.recipe.tree import Node, Origin, closest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from usdcore.plans import Base
    from usdcore.recipe import Recipe, TrainConfig
    from usdcore.recipe.tree import Path as Place

    Mistakes = Iterator[tuple[Place, str]]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_KEYED = re.compile(r"((?:model|data|train|budget)(?:\.\w+)+): (.*)", re.DOTALL)
_UNEXPECTED = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")

MOST_TENSORS = 100_000
"""Parameters and buffers of a model; timm's largest have some thousands."""


def preflight(recipe: Recipe, written: Node | None = None, *, fresh: bool = True) -> None:
    """Errors: `RecipeError` with everything that would stop the run later.

    Args:
        recipe: a valid one.
        written: its values with their places in files (`usdcore.recipe.read_recipe`), for the positions of mistakes.
        fresh: the run begins; one that goes on does not need the weights that it started from.
    """
    found = [*_optimizers(recipe), *_plugins(recipe), *(_weights(recipe) if fresh else ()), *_model(recipe)]
    if found:
        raise mistakes_at(found, written)


def try_out(model: nn.Module, shape: tuple[int, ...], recipe: Recipe, written: Node | None = None) -> None:
    """Use the model once in either mode, on images of `shape` [C, H, W]; it and all generators are left as they were.

    Errors: `RecipeError` for arguments that timm takes and that only fail in a forward (a drop rate above 1, say).
    """
    try:
        outputs(model, shape)
    except Exception as error:  # whatever layers raise
        reason = brief(f"{type(error).__name__}: {error}", 200)
        text = f"{recipe.model.name} with these arguments fails on images {list(shape)} ({reason}); change them"
        raise mistakes_at([(("model", "kwargs"), text)], written) from error


def require_compilers(recipe: Recipe, device: torch.device, written: Node | None = None) -> None:
    """Errors: a phase is to be compiled, and nothing can be on this machine."""
    everywhere: Place = ("train", "compile")
    asked = {recipe.train.compiles: everywhere} if recipe.controls else {}
    for i, phase in enumerate(recipe.phases):
        is_own = "compile" in phase.train.model_fields_set
        if phase.epochs:
            asked.setdefault(recipe.train_for(phase).compiles, ("phases", i, *everywhere) if is_own else everywhere)
    for options, place in asked.items():
        if options is not None:
            with locating(place, written):
                require_compiler(device, options.backend, options.mode)


@contextmanager
def locating(place: Place, written: Node | None) -> Iterator[None]:
    """A clean error inside is about this part of the recipe, or the key that it begins with, and gets its line."""
    try:
        yield
    except RecipeError:
        raise
    except UsdcoreError as error:
        raise mistakes_at([_keyed(str(error), place)], written) from error


def _keyed(text: str, place: Place) -> tuple[Place, str]:
    """A message that begins with a key of the recipe, such as "data.root: ...", apart; else `place` and the text."""
    about = _KEYED.fullmatch(text)
    return (tuple(about[1].split(".")), about[2]) if about else (place, text)


def mistakes_at(found: list[tuple[Place, str]], written: Node | None) -> RecipeError:
    """The error for mistakes at keys of a recipe, each with its line where `written` is known."""
    nowhere = Origin("")
    return RecipeError(
        Problem(closest(written, place).origin if written is not None else nowhere, place, text)
        for place, text in found
    )


def notes(recipe: Recipe) -> list[str]:
    """What is no mistake here, but would be one where the recipe runs: data and devices that this machine lacks."""
    lines = []
    for name in type(recipe.data).model_fields:
        value = getattr(recipe.data, name)
        if isinstance(value, Path) and not value.exists():
            lines.append(f"data.{name}: {brief(str(value), 200)} is not here; a dry run does not need it, a run will")
    if recipe.device == "cuda" and not torch.cuda.is_available():
        lines.append("device: cuda was asked for, and torch sees no CUDA device here")
    if any(recipe.train_for(phase).compiles for phase in recipe.phases):
        lines.append("train.compile: nothing is compiled here; time and memory are those of plain steps")
    return lines


def _optimizers(recipe: Recipe) -> Mistakes:
    """The run's optimizer, where a phase uses it, and every phase's own."""
    own = {i: "opt" in phase.train.model_fields_set for i, phase in enumerate(recipe.phases)}
    if not all(own.values()):
        yield from _optimizer(recipe.train, ("train", "opt"))
    for i in (i for i, has in own.items() if has):
        yield from _optimizer(recipe.train_for(recipe.phases[i]), ("phases", i, "train", "opt"))


def _optimizer(train: TrainConfig, place: Place) -> Mistakes:
    names = list_optimizers()
    if train.opt not in names:
        yield place, f"timm has no optimizer {brief(train.opt)!r}; {nearest(train.opt, names)}"
        return
    reason = _unusable(train)
    if reason is not None:
        yield place, f"the optimizer {train.opt} can't make a step here ({reason}); use another, such as adamw"


def _unusable(train: TrainConfig) -> str | None:
    """Why an optimizer can't be used on a matrix (it needs a package, a CUDA device, second derivatives); None if it
    can.
    """
    try:
        trial_step(train)
    except Exception as error:  # every optimizer has its own way to say no
        return brief(f"{type(error).__name__}: {error}", 200)
    return None


def trial_step(train: TrainConfig, side: int = 2) -> torch.optim.Optimizer:
    """A recipe's optimizer after its first step, on one matrix of so many rows and columns. Errors: the optimizer's
    own.
    """
    weight = torch.zeros(side, side, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            [weight], opt=train.opt, lr=train.lr, weight_decay=0.0, momentum=train.momentum
        )
        torch.autograd.backward(weight.sum())
        optimizer.step()
    return optimizer


def _plugins(recipe: Recipe) -> Mistakes:
    """Every implementation can be imported, those of later phases as well."""
    try:
        registry().load("data-source", recipe.data.source)
    except UsdcoreError as error:
        yield ("data", "source"), str(error)
    for i, phase in enumerate(recipe.phases):
        for j, strategy in enumerate(phase.strategies):
            place = ("phases", i, "strategies", j)
            try:
                registry().load("strategy", strategy.use)(strategy)
                _load_inner(strategy)
            except UsdcoreError as error:
                yield place, str(error)


def _load_inner(options: BaseModel) -> None:
    """The plugins that options name."""
    for name, field in type(options).model_fields.items():
        value: Any = getattr(options, name)
        kinds = {reference.kind for reference in field_references(field)}
        for inner in value if isinstance(value, list | tuple) else [value]:
            if isinstance(inner, BaseModel):
                for kind in kinds if len(kinds) == 1 else ():
                    registry().load(kind, getattr(inner, "use", ""))
                _load_inner(inner)


def _weights(recipe: Recipe) -> Mistakes:
    path = recipe.model.weights
    if path is None or path.is_file():
        return
    if path.is_dir():
        yield ("model", "weights"), f"{brief(str(path), 200)} is a folder; name the file inside it"
        return
    near = [p.name for p in path.parent.iterdir() if p.suffix in _SUFFIXES] if path.parent.is_dir() else []
    hint = nearest(path.name, near) if near else "check the path, which is relative to the current folder"
    yield ("model", "weights"), f"there is no file {brief(str(path), 200)}; {hint}"


def _model(recipe: Recipe) -> Mistakes:
    """The model can be made, and fits the images."""
    try:
        require_model(recipe.model.name)
    except UsdcoreError as error:
        yield ("model", "name"), str(error)
        return
    base = make_base(recipe.model, recipe.data.input_size, recipe.data.channels)
    try:
        model = _sketch(base)
    except UsdcoreError as error:
        yield _arguments(recipe, str(error))
        return
    yield from _patches(recipe, model)


def _arguments(recipe: Recipe, text: str) -> tuple[Place, str]:
    """What is wrong with the constructor's arguments, at the key to mend."""
    if _KEYED.fullmatch(text):
        return _keyed(text, ("model", "kwargs"))
    if unexpected := _UNEXPECTED.search(text):
        key = unexpected[2]
        if key not in recipe.model.kwargs and key in ("img_size", "in_chans"):
            size = "data.input_size" if key == "img_size" else "data.source"
            text = (
                f"{recipe.model.name} takes no {key}, so it can't be made for these images; use another model or {size}"
            )
            return ("model", "name"), text
        known = _parameters(recipe.model.name, unexpected[1])
        return ("model", "kwargs", key), f"{recipe.model.name} has no argument {key!r}; {nearest(key, known)}"
    return ("model", "kwargs"), text


def _parameters(name: str, class_name: str) -> list[str]:
    """The arguments of a model's constructor that describe its architecture."""
    module = sys.modules[timm.models.model_entrypoint(name).__module__]
    names = inspect.signature(getattr(module, class_name, object).__init__).parameters
    return sorted(set(names) - FORBIDDEN - {"self", "args", "kwargs"})


def _sketch(base: Base) -> nn.Module:
    """The model without memory for its weights; one that reads values while it is made gets them."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = memory // torch.float32.itemsize
    refusal = (
        f"{base.name} with these kwargs has more than {MOST_TENSORS} tensors, or more numbers than this "
        "machine's memory holds; check model.kwargs, model.num_classes and data.input_size"
    )
    with at_most(MOST_TENSORS, limit, refusal), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about what is empty; the costs will say it better
        try:
            with torch.device("meta"):
                return create(base)
        except UsdcoreError:
            return create(base)


def _patches(recipe: Recipe, model: nn.Module) -> Mistakes:
    """Patches must cover the image: the rest of it would silently be cut off. timm's own default sizes are accepted."""
    embed, size = getattr(model, "patch_embed", None), recipe.data.input_size
    config = timm.models.get_pretrained_cfg(recipe.model.name)
    if not isinstance(embed, PatchEmbed) or embed.dynamic_img_pad or (config and config.input_size[-1] == size):
        return
    patch = max(embed.patch_size)
    if size % patch:
        near = " or ".join(str(n) for n in (size - size % patch, size - size % patch + patch) if n)
        yield ("data", "input_size"), f"{size} is not a multiple of the model's patch size {patch}; use {near}"
