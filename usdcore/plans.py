"""The decision, as records: what is kept, dropped and attached, in the coordinates of the base model.

`base + plan + weights` rebuilds the compressed model on any machine. Plans are plain data: they travel as JSON.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError, field_validator

from usdcore.errors import UsdcoreError, brief
from usdcore.jsontext import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


#: How the names of token sites end: what enters a block or a branch, and what leaves a block.
TOKENS, OUTPUT = ":tokens", ":output"


def is_token_site(site: str) -> bool:
    """Whether a site is the tokens that enter a block or a branch, or leave a block."""
    return site.endswith((TOKENS, OUTPUT))


def gate_key(plugin: str, site: str) -> str:
    """The name of a plugin's gate at a site; a slash stands for each dot, which module names can't have."""
    return f"{plugin}@{site}".replace(".", "/")


def _is_shown(text: str) -> str:
    """Names end up in messages: none may hold what a terminal would obey."""
    if not text.isprintable():
        raise ValueError("holds characters that can't be shown")
    return text


# A plan may come from a stranger's file: whatever it holds has bounds, far above those of any model.
Name = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_is_shown)]
Index = Annotated[int, Field(ge=0, lt=2**31)]
Distribution = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$")]
Version = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._!+\-]*$")]
MAX_ENTRIES, MAX_RECORDS = 1_000_000, 10_000


_Stated = TypeVar("_Stated", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Base(_Record):
    """The model that a plan starts from: a timm name, what its constructor is given, and one image's shape."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.\-]+$")
    kwargs: dict[str, Any] = Field(default_factory=dict)
    num_classes: int = Field(ge=1, le=10_000_000)
    input_shape: tuple[int, int, int] = Field(description="channels, height, width")
    distribution: Distribution | None = Field(default=None, description="of a plugin's backbone; none: timm's own")
    version: Version | None = None

    @field_validator("input_shape")
    @classmethod
    def _bounded(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if any(not 1 <= side <= 65_536 for side in shape):
            msg = f"input_shape {shape} has a side outside 1..65536"
            raise ValueError(msg)
        return shape


class Keep(_Record):
    """Keep just these entries of a group (at least one: an empty group is not a dropped branch)."""

    record: Literal["keep"] = "keep"
    group: Name
    indices: Annotated[tuple[Index, ...], FailFast()] = Field(min_length=1, max_length=MAX_ENTRIES)

    @field_validator("indices")
    @classmethod
    def _ordered(cls, indices: tuple[int, ...]) -> tuple[int, ...]:
        if any(b <= a for a, b in pairwise(indices)):
            msg = "indices must be non-negative and ascending, each once"
            raise ValueError(msg)
        return indices


class Drop(_Record):
    """Remove a residual branch; the stream passes."""

    record: Literal["drop"] = "drop"
    branch: Name


class Attach(_Record):
    """Put a plugin's gate at a site. `config` is the plugin's own and holds scope and threshold."""

    record: Literal["attach"] = "attach"
    site: Name
    plugin: Name
    distribution: Distribution
    version: Version
    config: dict[str, Any]

    @property
    def key(self) -> str:
        """The name of the gate in the model: plugin and site."""
        return gate_key(self.plugin, self.site)

    def read(self, kind: type[_Stated], config: Mapping[str, Any] | None = None) -> _Stated:
        """The record's config, or a part of it, as the plugin's own model. Errors: it is none."""
        try:
            return kind.model_validate(self.config if config is None else config)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = brief(".".join(str(part) for part in first["loc"]) or "its config", 200)
            msg = f"the plan's gate at {self.site} can't be built: {place}: {first['msg']}"
            raise UsdcoreError(msg) from None


Record = Annotated[Keep | Drop | Attach, Field(discriminator="record")]


class Plan(_Record):
    """An ordered list of records over a base. Without a base it applies to any model that has the named sites."""

    format: Literal[1] = 1
    base: Base | None = None
    records: Annotated[tuple[Record, ...], FailFast()] = Field(default=(), max_length=MAX_RECORDS)

    def keep(self, group: str) -> tuple[int, ...] | None:
        """The base indices that are left of a group; None if nothing was said of it."""
        left: set[int] | None = None
        for record in self.records:
            if isinstance(record, Keep) and record.group == group:
                left = set(record.indices) if left is None else left & set(record.indices)
        return None if left is None else tuple(sorted(left))

    @property
    def drops(self) -> tuple[str, ...]:
        """The branches removed, each once."""
        return tuple(dict.fromkeys(record.branch for record in self.records if isinstance(record, Drop)))

    @property
    def kept_groups(self) -> dict[str, tuple[int, ...]]:
        """What is left of each group that some record names."""
        left: dict[str, set[int]] = {}
        for record in self.records:
            if isinstance(record, Keep):
                here = left.get(record.group)
                left[record.group] = set(record.indices) if here is None else here & set(record.indices)
        return {name: tuple(sorted(indices)) for name, indices in left.items()}

    @property
    def attached(self) -> dict[str, Attach]:
        """The last attach record of each plugin and site, by `Attach.key`."""
        return {record.key: record for record in self.records if isinstance(record, Attach)}

    def then(self, records: Iterable[Keep | Drop | Attach]) -> Plan:
        """This plan followed by `records`, whose indices count in the model that this plan gives; stored in base
        coordinates. Errors: an index out of range, dims of a unit whose heads were cut (see `nesting.continued`).
        """
        return self.model_copy(update={"records": (*self.records, *(self._to_base(record) for record in records))})

    def without_gates(self) -> Plan:
        """The static part: keeps and drops."""
        return self.model_copy(update={"records": tuple(r for r in self.records if not isinstance(r, Attach))})

    def _to_base(self, record: Keep | Drop | Attach) -> Keep | Drop | Attach:
        if not isinstance(record, Keep):
            return record
        unit, _, kind = record.group.rpartition(":")
        if kind not in ("heads", "width") and self.keep(f"{unit}:heads") is not None:
            msg = (
                f"{record.group}: heads of {unit} are gone already, and only the model's units tell what went with "
                f"them; use usdcore.nesting.continued(plan, records, units)"
            )
            raise UsdcoreError(msg)
        here = self.keep(record.group)
        if here is None:
            return record
        if record.indices[-1] >= len(here):
            msg = f"{record.group}: index {record.indices[-1]} is out of range, {len(here)} entries are left"
            raise UsdcoreError(msg)
        return Keep(group=record.group, indices=tuple(here[i] for i in record.indices))


def parse_plan(text: str, where: str) -> Plan:
    """A plan from JSON text; `where` names the file in the error."""
    stated = parse_json(text, where)
    version = stated.get("format", 1) if isinstance(stated, dict) else 1
    if version != 1:
        msg = f"{where}: its plan is of format {brief(str(version))}, and this usdcore reads format 1; install another"
        raise UsdcoreError(msg)
    try:
        return Plan.model_validate(stated)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = brief(".".join(str(part) for part in first["loc"]), 200) or "the plan"
        msg = f"{where}: not a plan of format 1: {place}: {first['msg']}; fetch or make the file again"
        raise UsdcoreError(msg) from None
