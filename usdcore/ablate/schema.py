"""An ablation file's sections. Whatever a row changes is checked later, as part of the recipe that it gives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from usdcore.ablate.columns import parse_accuracy, parse_column
from usdcore.recipe.base import Name  # noqa: TC001 - pydantic reads the annotation
from usdcore.report.text import one_line

Column = Annotated[str, AfterValidator(lambda text: parse_column(text).key)]
"""A quantity, see `usdcore.ablate.columns`: ``top1``, ``executed_macs``, ``top1@32``."""

Text = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(one_line)]
"""Ends up in terminals and pages: one line of printable characters."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(ge=0, le=1)]


class Keys(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Paper(Keys):
    """Whose claims they are."""

    cite: Text
    """The table, as a reader finds it."""
    data: Text
    """The data set that the claims were measured on; it stands in the heading of their column."""


class Scale(Keys):
    """One size at which the whole table can be run."""

    base: Text
    """The recipe that the rows change, relative to this file."""
    data: Text
    """What our numbers are measured on, in words."""
    is_papers: bool = False
    """The paper's data and setting: only here are differences to its numbers printed."""
    seeds: Annotated[tuple[Seed, ...] | None, Field(min_length=1, max_length=100)] = None
    """Seeds at this scale; default: those of the file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What differs from the base in every row: ``a.b: value``, or nested."""
    remove: tuple[Text, ...] = ()
    """What goes from the base in every row, as paths."""
    note: Text | None = None
    """A sentence above the table."""


class At(Keys):
    """What a row has at one scale, on top of what it has at all of them."""

    base: Text | None = None
    """A recipe of its own, relative to this file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Overrides."""
    remove: tuple[Text, ...] = ()
    """Paths to remove."""
    missing: Text | None = None
    """Why the row can't be run at this scale."""


class KeptLayer(Keys):
    """One layer of a structure that a paper prints."""

    network: Text | None = None
    """Its gate network: the name of a registered one."""
    heads: Annotated[int, Field(ge=0)]
    """Heads left; 0: the attention branch was removed."""
    hidden: Annotated[int, Field(ge=0)]
    """Hidden neurons left; 0: the feed-forward branch was removed."""
    rates: tuple[Rate | None, Rate | None] = (None, None)
    """How often the attention and the feed-forward branch run; null: always."""


class Row(Keys):
    """One line of the table."""

    name: Text
    """As it is printed; unique in the file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What differs from the base: ``a.b: value``, or nested; items of lists go by name: ``phases.search.epochs``."""
    remove: tuple[Text, ...] = ()
    """What goes from the base, as paths: ``phases.search.strategies.usdc-static``."""
    at: dict[str, At] = Field(default_factory=dict)
    """By scale, what it has there besides."""
    only: tuple[Text, ...] = ()
    """The scales that it is part of; none named: all."""
    model: Literal["compressed", "dense", "narrow", "random"] = "compressed"
    """Which model of the run the row shows; narrow and random: the control of that name, which its recipe names."""
    paper: dict[Column, float | Text] = Field(default_factory=dict)
    """The paper's claims by column: numbers, or text for what is no plain number (``> 39.2M``)."""
    needs: tuple[Text, ...] = ()
    """Plugins without which the row is missing."""
    missing: Text | None = None
    """Why the row can't be run: its method does not exist here."""
    structure: Annotated[tuple[KeptLayer, ...] | None, Field(min_length=1, max_length=200)] = None
    """A compressed model that the paper prints layer by layer: what it costs is computed, nothing is run."""
    control: bool = False
    """What the others have to beat, so that charts mark it: gates that skip at random. A row that shows a run's control
    is one anyway."""
    draw: bool = False
    """Draw what the row's first finished run left of each layer; a printed structure is drawn anyway."""
    note: Text | None = None
    """A footnote."""


Top1 = Annotated[str, AfterValidator(lambda text: parse_accuracy(text).key)]
"""An accuracy among the columns: ``top1``, ``top1@32``, ``top1_sorted``."""


class Claim(Keys):
    """A sentence that runs can speak for or against: a row is better than others, or as good at every batch size."""

    text: Text
    """The sentence, as it is printed."""
    row: Text
    """The row that it is about."""
    better_than: Annotated[tuple[Text, ...], Field(max_length=20)] = ()
    """Rows that it beats at `on`, seed by seed, in every column named there."""
    on: Annotated[tuple[Top1, ...], Field(min_length=1, max_length=32)] = ("top1",)
    """Accuracies that are compared."""
    flat_within: Annotated[float, Field(gt=0, le=100)] | None = None
    """Instead of `better_than`: the columns of `on` lie at most so many points apart."""


class Ablation(Keys):
    """One table of a paper, or one of your own."""

    name: Name
    """Names the files of the table."""
    title: Text
    """Its heading."""
    paper: Paper
    """Whose claims are printed."""
    note: Text | None = None
    """A sentence above the table."""
    report: Annotated[tuple[Column, ...], Field(min_length=1, max_length=32)]
    """The columns."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=100)]
    """One run of each row for each."""
    scales: Annotated[dict[Name, Scale], Field(min_length=1)]
    """The sizes at which it can be run; the first is taken unless another one is asked for."""
    rows: Annotated[tuple[Row, ...], Field(min_length=1, max_length=200)]
    """The lines of the table."""
    claims: Annotated[tuple[Claim, ...], Field(max_length=50)] = ()
    """What the rows are run to find out; each is judged by the finished runs."""


__all__ = ["Ablation", "At", "Claim", "KeptLayer", "Paper", "Row", "Scale"]
