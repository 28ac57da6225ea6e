"""A run's `result.json` as frozen records. Fractions are of the dense model, macs are multiply-accumulates an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from usdcore.errors import UsdcoreError, brief
from usdcore.files import read_bytes
from usdcore.jsontext import parse_json
from usdcore.report.text import one_line

if TYPE_CHECKING:
    from pathlib import Path

RESULT_FILE = "result.json"
FORMAT = 1
"""Of result.json; one without a number is of the first."""

# A result may be somebody else's: what it holds is bounded before a page or a figure is made of it.
MAX_BYTES = 2**22
MAX_NUMBER = 1e18
MAX_ROWS = 256

# Names come from users and plugins and end up in terminals, SVG and HTML: each is one line of printable characters.
Line = Annotated[str, Field(max_length=4000), AfterValidator(one_line)]


class Record(BaseModel):
    """Common base: unknown keys are welcome (a newer writer), known ones are checked."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
                raise ValueError(f"{name} is beyond {MAX_NUMBER:g}")
            if isinstance(value, tuple | dict) and len(value) > MAX_ROWS:
                raise ValueError(f"{name} has more than {MAX_ROWS} entries")
        return self


class Latency(Record):
    """One batch size of one model, as `usdcore.latency.measure_latency` returns it: milliseconds per batch."""

    batch_size: int
    median_ms: float
    iqr_ms: float
    ratio_to_dense: float
    dtype: Line | None = None
    device: Line | None = None
    threads: int | None = None


class Measured(Record):
    """What is known of one model; None means not run. `top1` is in percent, `executed_macs` a mean per image."""

    params: int | None = None
    macs: float | None = None
    top1: float | None = None
    file_bytes: int | None = None
    epochs: float | None = None
    latency: tuple[Latency, ...] = ()
    executed_macs: float | None = None
    top1_before_finetune: float | None = None


class Control(Measured):
    """A model that the compressed one must beat to be worth its trouble (a narrower dense one, random gates)."""

    name: Line
    description: Line = ""


class Budget(Record):
    """The promise: `target` and the four values against it, all fractions of the dense model's `metric`."""

    metric: Line
    target: float
    achieved: float | None
    calibrated: float | None = None
    after_search: float | None = None
    static: float | None = None
    batch_size: int
    scope: Line
    tolerance: float
    why: Line | None = None
    met: bool


class Evaluation(Record):
    """Accuracy (percent) and executed MACs per image at one batch size."""

    batch_size: int
    scope: Line
    order: Line = "shuffled"
    top1: float | None
    executed_macs: float | None
    images: int | None = None


class DialPoint(Record):
    """The same weights at another threshold of the gates."""

    target: float
    threshold: float | None
    executed_macs: float
    top1: float


class KeptAttention(Record):
    """What is left of one attention branch; `heads` 0: the branch was removed; `rate` None: it has no gate."""

    branch: Line
    heads: int = Field(ge=0)
    heads_dense: int = Field(ge=1)
    dims: tuple[int, ...] | None = None
    """Value dims left in each head, where any were cut."""
    rate: float | None = None

    @property
    def kept(self) -> int:
        """Entries kept."""
        return self.heads

    @property
    def dense(self) -> int:
        """Entries of the dense model."""
        return self.heads_dense


class KeptFeedForward(Record):
    """What is left of one feed-forward branch; `hidden` 0: the branch was removed; `rate` None: it has no gate."""

    branch: Line
    hidden: int = Field(ge=0)
    hidden_dense: int = Field(ge=1)
    rate: float | None = None

    @property
    def kept(self) -> int:
        """Entries kept."""
        return self.hidden

    @property
    def dense(self) -> int:
        """Entries of the dense model."""
        return self.hidden_dense


Kept = KeptAttention | KeptFeedForward


class Layer(Record):
    """One block: its gate network (None without gates) and its two branches, where it has them."""

    block: Line
    gate_network: Line | None = None
    attention: KeptAttention | None = None
    ffn: KeptFeedForward | None = None

    @property
    def branches(self) -> tuple[tuple[str, Kept], ...]:
        """The branches that exist, under the papers' names."""
        pairs = (("MHSA", self.attention), ("FFN", self.ffn))
        return tuple((name, kept) for name, kept in pairs if kept is not None)


class Gates(Record):
    """How many gates there are, how many depend on the input (rate between 0.02 and 0.98), and their cost per image."""

    networks: int
    decisions: int
    dynamic: int
    macs: float
    paper_flops: float


class Phase(Record):
    """One phase of the run; `macs_after` per image, `top1_after` in percent."""

    name: Line
    epochs: float
    seconds: float
    waited: float | None = None
    """The share of its last epoch's time that was spent waiting for data."""
    strategies: tuple[Line, ...] = ()
    macs_after: float | None = None
    top1_after: float | None = None


class Data(Record):
    """What the run was trained and evaluated on."""

    source: Line
    description: Line = ""
    fingerprint: Line | None = None
    train_images: int | None = None
    test_images: int | None = None


class Warned(Record):
    """What a reader must know that the numbers do not show: a gate that collapsed, zeros that are counted whole."""

    text: Line
    site: Line | None = None


class Provenance(Record):
    """The conditions under which the numbers hold."""

    versions: dict[Line, Line | None]
    device: Line
    threads: int | None = None
    seed: int
    data: Data
    seconds: float
    date: Line
    commit: Line | None = None


class Result(Record):
    """Everything that a finished run reports."""

    usdcore: Line
    recipe: Line
    recipe_sha256: Line
    model: Line
    input_size: int
    num_classes: int
    dense: Measured
    compressed: Measured
    controls: tuple[Control, ...] = ()
    budget: Budget
    eval: tuple[Evaluation, ...] = ()
    dial: tuple[DialPoint, ...] = ()
    structure: tuple[Layer, ...] = ()
    removed: dict[Line, float] = Field(default_factory=dict)
    gates: Gates
    phases: tuple[Phase, ...] = ()
    warnings: tuple[Warned, ...] = ()
    provenance: Provenance
    note: Line | None = None

    @property
    def models(self) -> tuple[tuple[str, Measured], ...]:
        """The columns of every comparison: dense, compressed, then the controls."""
        return (
            ("dense", self.dense),
            ("compressed", self.compressed),
            *((control.name, control) for control in self.controls),
        )


def read_result(run_dir: Path) -> Result:
    """Read `run_dir/result.json`.

    Raises:
        UsdcoreError: the run is unfinished (no result yet), or the file is not a result that this version can read.
    """
    path = run_dir / RESULT_FILE
    if not path.exists():
        raise UsdcoreError(_unfinished(run_dir))
    stated = _parsed(path)
    version = stated.get("format", FORMAT) if isinstance(stated, dict) else FORMAT
    if version != FORMAT:
        msg = f"{path}: a result of format {brief(str(version))}, and this usdcore reads {FORMAT}; install another"
        raise UsdcoreError(msg)
    try:
        return Result.model_validate(stated)
    except ValidationError as error:
        raise UsdcoreError(_unreadable(path, _mistakes(error))) from None


def _parsed(path: Path) -> Any:
    content = read_bytes(path, MAX_BYTES)
    try:
        return parse_json(content, "the file")
    except UsdcoreError as error:
        raise UsdcoreError(_unreadable(path, [f"  {error}"])) from None


def _unfinished(run_dir: Path) -> str:
    if not run_dir.is_dir():
        return f"{run_dir}: there is no such run folder; give the folder that `usdcore run` wrote"
    recipe = run_dir / "recipe.yaml"
    name = recipe if recipe.is_file() else "RECIPE"
    return (
        f"{run_dir}: the run is unfinished (no {RESULT_FILE}); "
        f"`usdcore run {name} --out {run_dir}` goes on where it stopped, and writes the report"
    )


def _mistakes(error: ValidationError) -> list[str]:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [f"  {'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in found[:5]]
    if len(found) > 5:
        lines.append(f"  and {len(found) - 5} more")
    return lines


def _unreadable(path: Path, lines: list[str]) -> str:
    hint = "it was edited or comes from another version; the same `usdcore run` command writes it again"
    return "\n".join([f"{path}: not a result that this version of usdcore can read ({hint})", *lines])
