"""Phases, and the rule that ties them together: a strategy named again in a later phase is the same object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, to_json

from usdcore.hooks.reference import Reference, Use, as_line, is_mutable
from usdcore.recipe.base import Name, Section
from usdcore.recipe.training import TrainOverride

if TYPE_CHECKING:
    from pydantic import ValidationInfo
    from pydantic_core import InitErrorDetails

    from usdcore.hooks.config import PluginConfig
    from usdcore.recipe.training import TrainConfig

    StrategyConfig = PluginConfig
else:
    StrategyConfig = Use["strategy"]

_STRATEGY = Reference("strategy")


class PhaseConfig(Section):
    """One stretch of training; the plan is applied when it ends."""

    name: Name
    """Unique in the recipe."""
    epochs: int = Field(ge=0, le=1_000_000)
    """Passes over the training images."""
    train: TrainOverride = TrainOverride()
    """Training keys that differ in this phase."""
    strategies: tuple[StrategyConfig, ...] = ()
    """What acts in this phase: names, or mappings with `use` and the strategy's options; none: plain training."""

    def training(self, train: TrainConfig) -> TrainConfig:
        """The run's training options with what this phase changes."""
        return train.model_copy(update={key: getattr(self.train, key) for key in self.train.model_fields_set})


class _OneStrategy(BaseModel):
    """Validates one strategy alone, in either mode."""

    strategy: StrategyConfig


_PHASES: TypeAdapter[tuple[PhaseConfig, ...]] = TypeAdapter(Annotated[tuple[PhaseConfig, ...], Field(min_length=1)])
_ONE: TypeAdapter[_OneStrategy] = TypeAdapter(_OneStrategy)


@dataclass
class _Mention:
    """Where a strategy stands (phase, index) and its options, those that it inherits included."""

    at: tuple[int, int]
    options: dict[str, Any]
    own: set[str] = field(default_factory=set)
    before: _Mention | None = None

    def inherits(self, key: object) -> bool:
        return self.before is not None and key not in self.own


def validate_phases(value: Any, _handler: object, info: ValidationInfo) -> tuple[PhaseConfig, ...]:
    """The phases, each strategy with the options that it has there.

    A strategy named again inherits what it leaves out; what it states must be what it already has, unless the field is
    declared mutable. Every error is raised at once, at its place. (A wrap validator that runs its own inner validation:
    the handler's would refuse lists for tuples, because what reaches it from JSON is Python by then.)
    """
    phases = [_as_mapping(phase) for phase in value] if isinstance(value, list | tuple) else value
    mentions: list[_Mention] = []
    lines: list[InitErrorDetails] = []
    if isinstance(phases, list):
        mentions, lines = _inherit(phases)
        lines += _repeated_names(phases)
        lines += [
            line for mention in mentions if mention.before for line in _changed(mention, mention.before, info.mode)
        ]
    valid: tuple[PhaseConfig, ...] = ()
    try:
        valid = _validate(_PHASES, phases, info.mode)
    except ValidationError as error:
        inherited = {mention.at: mention for mention in mentions if mention.before}
        lines += [as_line(e) for e in error.errors() if not _is_inherited(e["loc"], inherited)]
    if lines:
        raise ValidationError.from_exception_data("phases", lines)
    return valid


def _validate(adapter: TypeAdapter[Any], value: Any, mode: str) -> Any:
    """What comes from a file (JSON mode) is checked strictly."""
    return adapter.validate_json(to_json(value), strict=True) if mode == "json" else adapter.validate_python(value)


def _as_mapping(phase: Any) -> Any:
    """A phase as keys and values, so that objects and files go the same way."""
    if isinstance(phase, PhaseConfig):
        phase = {key: getattr(phase, key) for key in phase.model_fields_set}
    if isinstance(phase, Mapping) and isinstance(phase.get("strategies"), list | tuple):
        return {**phase, "strategies": list(phase["strategies"])}
    return phase


def _options(item: Any) -> dict[str, Any] | None:
    """A strategy as keys and values; None where it is none, or does not say its name."""
    name = _STRATEGY.name_in(item)
    if name is None:
        return None
    if isinstance(item, BaseModel):
        item = {key: getattr(item, key) for key in item.model_fields_set}
    return {**item, "use": name} if isinstance(item, Mapping) else {"use": name}


def _inherit(phases: list[Any]) -> tuple[list[_Mention], list[InitErrorDetails]]:
    """Fill in, in place, what later mentions leave out. Returns all mentions, and an error for each double one."""
    latest: dict[str, _Mention] = {}
    mentions: list[_Mention] = []
    lines: list[InitErrorDetails] = []
    for i, phase in enumerate(phases):
        given = phase.get("strategies") if isinstance(phase, Mapping) else None
        strategies: list[Any] = given if isinstance(given, list) else []
        for j, item in enumerate(strategies):
            options = _options(item)
            if options is None:
                continue
            before = latest.get(options["use"])
            if before is not None and before.at[0] == i:
                text = f"strategy {options['use']!r} is already in this phase; name it once"
                lines.append(_line("strategy_twice", text, (i, "strategies", j), options["use"]))
                strategies[j] = before.options  # nothing else needs to be said about it
                mentions.append(_Mention((i, j), before.options, {"use"}, before))
                continue
            mention = _Mention((i, j), options, set(options), before)
            if before is not None:
                mention.options = {**before.options, **options}
                strategies[j] = mention.options
            latest[options["use"]] = mention
            mentions.append(mention)
    return mentions, lines


def _repeated_names(phases: Sequence[Any]) -> list[InitErrorDetails]:
    seen: set[str] = set()
    lines = []
    for i, phase in enumerate(phases):
        name = phase.get("name") if isinstance(phase, Mapping) else None
        if isinstance(name, str) and name in seen:
            lines.append(
                _line("phase_twice", f"an earlier phase is named {name!r}; choose another name", (i, "name"), name)
            )
        elif isinstance(name, str):
            seen.add(name)
    return lines


def _changed(mention: _Mention, before: _Mention, mode: str) -> list[InitErrorDetails]:
    """An error for each option that a later mention changes and may not."""
    was = _valid(before.options, mode)
    if was is None:
        return []  # the phases' own validation reports it
    now = _valid(mention.options, mode)
    lines = []
    for key, info in type(was).model_fields.items():
        if key not in mention.own or is_mutable(info):
            continue
        # Where another option is wrong, this one can still be compared on its own.
        alone = now or _valid({**before.options, key: mention.options[key]}, mode)
        if alone is not None and getattr(was, key) != getattr(alone, key):
            text = (
                f"{mention.options['use']} was given another value in an earlier phase, and this option can't change "
                f"between phases; leave it out here"
            )
            place = (mention.at[0], "strategies", mention.at[1], key)
            lines.append(_line("strategy_changed", text, place, mention.options[key]))
    return lines


def _valid(options: dict[str, Any], mode: str) -> BaseModel | None:
    """A strategy's options on their own; None where they are wrong."""
    try:
        strategy: BaseModel = _validate(_ONE, {"strategy": options}, mode).strategy
    except ValidationError:
        return None
    return strategy


def _is_inherited(loc: tuple[int | str, ...], inherited: Mapping[tuple[int, int], _Mention]) -> bool:
    """Whether an error is about an option that an earlier mention gave, and was reported there."""
    match loc:
        case (int(i), "strategies", int(j), key, *_) if (i, j) in inherited:
            return inherited[i, j].inherits(key)
        case (int(i), "strategies", int(j)) if (i, j) in inherited:
            return inherited[i, j].own == {"use"}
    return False


def _line(kind: str, text: str, loc: tuple[int | str, ...], value: Any) -> InitErrorDetails:
    error = PydanticCustomError(kind, "{text}", {"text": text})
    return {"type": error, "loc": loc, "input": value}
