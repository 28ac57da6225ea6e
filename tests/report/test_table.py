from __future__ import annotations

import io

from rich.console import Console

from usdcore.report.table import Table, headline, to_markdown, to_terminal

GOLDEN = """\
|  | dense | compressed | narrow |
| --- | ---: | ---: | ---: |
| Top-1 | 79.85 % | 78.96 % (-0.89) | 78.10 % (-1.75) |
| Top-1 before fine-tuning | - | 71.30 % | - |
| MACs | 4.599 G | 3.446 G (74.9 %) | 3.360 G (73.1 %) |
| Executed MACs | 4.599 G | 3.350 G (72.8 %) | 3.360 G (73.1 %) |
| Parameters | 22.05 M | 16.79 M (76.1 %) | 16.10 M (73.0 %) |
| File size | 88.20 MB | 67.14 MB | 64.40 MB |
| Epochs trained | 40 | 40 | 40 |
| Latency, batch 1 | 20.0 ms | 14.2 ms (0.71x) | 14.9 ms (0.74x) |
| Latency, batch 32 | 512.0 ms | 340.5 ms (0.67x) | not run |

Shares, differences (in points) and ratios are against dense. MACs: multiply-accumulates per image with every gate on. \
Executed MACs: mean per evaluation image at batch size 32, gate networks included. \
Latency: median of interleaved rounds, milliseconds per batch, at batch sizes 1, 32; \
measured on the machine of this run (cpu; 1 thread; float32); other machines differ."""


def cells(table: Table, label: str) -> tuple[str, ...]:
    return next(row[1:] for row in table.rows if row[0] == label)


def terminal(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200, no_color=True)
    console.print(to_terminal(table))
    return console.file.getvalue()


def test_markdown_is_the_golden_one(result):
    assert to_markdown(headline(result())) == GOLDEN


def test_terminal_and_markdown_show_the_same_cells(result):
    table = headline(result())
    shown = terminal(table)
    assert all(cell in shown for row in table.rows for cell in row)


def test_missing_cells_say_not_run(result, raw):
    compressed = raw()["compressed"] | {"top1": None, "macs": None, "file_bytes": None, "latency": []}
    del compressed["executed_macs"]
    table = headline(result(compressed=compressed, controls=[]))
    for label in ("Top-1", "MACs", "Executed MACs", "File size", "Latency, batch 32"):
        assert cells(table, label)[1] == "not run"
    assert "not run" not in cells(table, "Parameters")


def test_a_dense_model_without_numbers_leaves_the_others_without_shares(result, raw):
    dense = raw()["dense"] | {"top1": None, "macs": None}
    table = headline(result(dense=dense))
    assert cells(table, "Top-1")[:2] == ("not run", "78.96 %")
    assert cells(table, "MACs")[:2] == ("not run", "3.446 G")


def test_without_latency_the_caption_says_so(result, raw):
    models = {name: raw()[name] | {"latency": []} for name in ("dense", "compressed")}
    table = headline(result(**models, controls=[]))
    assert not any(row[0].startswith("Latency") for row in table.rows)
    assert table.caption.endswith("Latency: not run.")


def test_conditions_recorded_with_the_latency_win_over_the_runs(result, raw):
    dense = raw()["dense"]
    for row in dense["latency"]:
        row |= {"device": "NVIDIA H100", "threads": 4, "dtype": "bfloat16"}
    models = {"dense": dense, "compressed": raw()["compressed"] | {"latency": []}}
    caption = headline(result(**models, controls=[])).caption
    assert "(NVIDIA H100; 4 threads; bfloat16)" in caption


def test_unknown_dtype_and_threads_are_named_as_unknown(result, raw):
    dense = raw()["dense"]
    for row in dense["latency"]:
        del row["dtype"]
    models = {"dense": dense, "compressed": raw()["compressed"] | {"latency": []}}
    provenance = raw()["provenance"] | {"threads": None}
    caption = headline(result(**models, controls=[], provenance=provenance)).caption
    assert "(cpu; threads not recorded; dtype not recorded)" in caption


def test_names_are_not_markup(result, raw):
    name = "[bold]a|b[/bold] `c`\n<i>"
    table = headline(result(controls=[raw()["controls"][0] | {"name": name}]))
    assert "[bold]a|b[/bold] `c` <i>" in terminal(table)
    assert "\\[bold\\]a\\|b\\[/bold\\] \\`c\\` &lt;i&gt; |" in to_markdown(table).splitlines()[0]


def test_records_map_columns_to_cells(result):
    first = headline(result()).as_records()[0]
    assert first == {"": "Top-1", "dense": "79.85 %", "compressed": "78.96 % (-0.89)", "narrow": "78.10 % (-1.75)"}
