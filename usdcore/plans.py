"""The decision, as records: what is kept, dropped and attached, in the coordinates of the base model.

`base + plan + weights` rebuilds the compressed model on any machine. Plans are plain data: they travel as JSON.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from collections.abc import Iterable


def gate_key(plugin: str, site: str) -> str:
    """The name of a plugin's gate at a site; a slash stands for each dot, which module names can't have."""
    return f"{plugin}@{site}".replace(".", "/")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Base(_Record):
    """The model that a plan starts from: a timm name, what its constructor is given, and one image's shape."""

    name: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.\-]+$")
    kwargs: dict[str, Any] = Field(default_factory=dict)
    num_classes: int = Field(ge=1, le=10_000_000)
    input_shape: tuple[int, int, int] = Field(description="channels, height, width")

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
    group: str
    indices: tuple[int, ...] = Field(min_length=1)

    @field_validator("indices")
    @classmethod
    def _ordered(cls, indices: tuple[int, ...]) -> tuple[int, ...]:
        if indices[0] < 0 or any(b <= a for a, b in pairwise(indices)):
            msg = "indices must be non-negative and ascending, each once"
            raise ValueError(msg)
        return indices


class Drop(_Record):
    """Remove a residual branch; the stream passes."""

    record: Literal["drop"] = "drop"
    branch: str


class Attach(_Record):
    """Put a plugin's gate at a site. `config` is the plugin's own and holds scope and threshold."""

    record: Literal["attach"] = "attach"
    site: str
    plugin: str
    distribution: str
    version: str
    config: dict[str, Any]

    @property
    def key(self) -> str:
        """The name of the gate in the model: plugin and site."""
        return gate_key(self.plugin, self.site)


Record = Annotated[Keep | Drop | Attach, Field(discriminator="record")]


class Plan(_Record):
    """An ordered list of records over a base. Without a base it applies to any model that has the named sites."""

    format: Literal[1] = 1
    base: Base | None = None
    records: tuple[Record, ...] = ()

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
        names = dict.fromkeys(record.group for record in self.records if isinstance(record, Keep))
        return {name: self.keep(name) or () for name in names}

    @property
    def attached(self) -> dict[str, Attach]:
        """The last attach record of each plugin and site, by `Attach.key`."""
        return {record.key: record for record in self.records if isinstance(record, Attach)}

    def then(self, records: Iterable[Keep | Drop | Attach]) -> Plan:
        """This plan followed by `records`, whose indices count in the model that this plan gives; stored in base
        coordinates.
        """
        return self.model_copy(update={"records": (*self.records, *(self._to_base(record) for record in records))})

    def without_gates(self) -> Plan:
        """The static part: keeps and drops."""
        return self.model_copy(update={"records": tuple(r for r in self.records if not isinstance(r, Attach))})

    def _to_base(self, record: Keep | Drop | Attach) -> Keep | Drop | Attach:
        if not isinstance(record, Keep):
            return record
        here = self.keep(record.group)
        if here is None:
            return record
        if record.indices[-1] >= len(here):
            msg = f"{record.group}: index {record.indices[-1]} is out of range, {len(here)} entries are left"
            raise UsdcoreError(msg)
        return Keep(group=record.group, indices=tuple(here[i] for i in record.indices))


def parse_plan(text: str, where: str) -> Plan:
    """A plan from JSON text; `where` names the file in the error."""
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the plan"
        msg = f"{where}: not a plan of format 1: {place}: {first['msg']}"
        raise UsdcoreError(msg) from None
