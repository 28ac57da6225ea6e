"""`usdcore bench`: latency and throughput of a run's model, beside the dense one and beside its MACs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from usdcore.cli.output import print_json
from usdcore.errors import UsdcoreError

if TYPE_CHECKING:
    from usdcore.report.table import Table

_MOST = 65536


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """Whole numbers from 1 up, with commas between them."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers, each once, ascending. Errors: a usage error for anything else."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() and 0 < int(part) <= _MOST for part in parts):
            self.fail(f"{value!r} is not a list of numbers from 1 to {_MOST}, such as 1,8,32", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


@click.command("bench")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--batch-sizes", type=Numbers(), default="1,4,16,64,256", show_default=True, help="Images per forward.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads; default: torch's own choice.")
@click.option("--rounds", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Of each batch size.")
@click.option(
    "--seconds", type=click.FloatRange(0), default=20.0, show_default=True,
    help="No new round of a batch size after so long, but at least 3.",
)  # fmt: skip
@click.option(
    "--images", type=click.Choice(["data", "random"]), default="data", show_default=True,
    help="The recipe's evaluation images, if at hand, or noise.",
)  # fmt: skip
@click.option("--scope", type=click.Choice(["batch", "sample"]), help="Gates decide per batch or per sample.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--dtype", "dtypes", type=click.Choice(["float32", "bfloat16"]), multiple=True,
    help="May be repeated; default float32, on CUDA both.",
)  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="Also time the models under torch.compile.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write here; default RUN/bench.json.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Time the model of RUN: dense, shrunk, and shrunk with skipping, interleaved, on one machine.

    RUN is the folder of a run, or a model.safetensors. See docs/speed.md for how to read the table.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks on stderr
    from usdcore.bench.measured import bench

    found = bench(run, _wish(**options), out)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _wish(device: str, threads: int | None, rounds: int, seconds: float, **others: Any) -> Any:
    import torch

    from usdcore.bench.measured import Wish
    from usdcore.latency import Timing

    if device == "cuda" and not torch.cuda.is_available():
        msg = "--device cuda: torch sees no CUDA device; use --device cpu"
        raise UsdcoreError(msg)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    others["dtypes"] = others["dtypes"] or (("float32", "bfloat16") if device == "cuda" else ("float32",))
    return Wish(timing=Timing(rounds, seconds, threads, device), **others)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console

    from usdcore.report.table import to_terminal

    console, stated = Console(), found["conditions"]
    console.print(to_terminal(_table(found)))
    per = stated["gates_decide_per"]
    lines = [
        *(f"batch {row['batch_size']}, {_name(row)}: {row['cause']}" for row in found["rows"] if row["cause"]),
        f"{found['model']} on {stated['machine']}: {stated['device']}, threads {stated['threads']}, torch "
        f"{stated['versions']['torch']}, {stated['date']}, load {stated['load_average']}",
        f"images: {stated['images']}",
        *([f"gates decide per {' and per '.join(per)}"] if per else []),
        f"memory: {stated['allocator']}",
        *(f"not run: {reason}" for reason in found["failed"]),
        *([f"written: {found['file']}"] if "file" in found else []),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(found: dict[str, Any]) -> Table:
    from usdcore.report import text
    from usdcore.report.table import Table

    rows = []
    for row in found["rows"]:
        shares = [f"{row['macs_ratio']:.3f}", f"{row['time_ratio']:.3f}", f"{row['gap']:+.3f}"]
        rows.append(
            (
                str(row["batch_size"]),
                _name(row),
                text.milliseconds(row["median_ms"]),
                text.milliseconds(row["iqr_ms"]),
                f"{row['images_per_second']:.4g}",
                *((text.NOT_APPLICABLE,) * 3 if row["model"] == "dense" else shares),
            )
        )
    columns = ("Batch", "Model", "Median", "Spread", "Images/s", "MACs", "Time", "Gap")
    caption = (
        "Median per batch over interleaved rounds; spread: between its quartiles. MACs (executed on these images) and "
        "time are shares of dense; gap: what time does not follow of MACs."
    )
    return Table(columns, tuple(rows), caption, left=(1,))


def _name(row: dict[str, Any]) -> str:
    own = [row["dtype"]] * (row["dtype"] != "float32") + ["compiled"] * row["compiled"]
    return f"{row['model']}{' (' + ', '.join(own) + ')' if own else ''}"
