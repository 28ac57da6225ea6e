"""What finished runs say of a table's claims, and claims that can't be judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ablate.small import ABLATION, planned, pretend, write_small

from usdcore.ablate.loading import read_ablation
from usdcore.cli import main
from usdcore.recipe import RecipeError

CLAIMS = """\
claims:
  - {text: magnitude beats Taylor, row: magnitude, better_than: [Taylor]}
  - {text: and at batch 1 too, row: magnitude, better_than: [Taylor], on: [top1, top1@1]}
  - {text: magnitude is flat, row: magnitude, flat_within: 1.5, on: [top1, top1@1]}
  - {text: magnitude is flatter, row: magnitude, flat_within: 0.9, on: [top1, top1@1]}
  - {text: it beats what is not here, row: magnitude, better_than: ["somebody else's"]}
"""


def judged(folder: Path, magnitude: list[float], taylor: list[float]) -> tuple[dict[str, str], str]:
    """The verdicts by text, and the Markdown."""
    path, out = write_small(folder, ABLATION + CLAIMS), folder / "out"
    _, jobs = planned(path, out / "papers", "papers")
    for row, values in (("magnitude", magnitude), ("Taylor", taylor)):
        for seed, top1 in enumerate(values):
            pretend(jobs, row, seed, top1)
    assert main(["ablate", str(path), "--out", str(out), "--scale", "papers", "--table"]) == 0
    found = json.loads((out / "tables" / "small-table-papers.json").read_text())["claims"]
    text = (out / "tables" / "small-table-papers.md").read_text()
    return {one["text"]: one["verdict"] for one in found}, text


@pytest.mark.parametrize(
    ("magnitude", "taylor", "verdict"),
    [
        ([80.0, 81.0, 82.0], [79.0, 79.9, 81.1], "holds"),  # seeds differ by more than rows do
        ([79.0, 79.9, 81.1], [80.0, 81.0, 82.0], "does not hold"),
        ([80.0, 81.0, 82.0], [79.0, 82.0, 81.0], "within noise"),
        ([80.0, 81.0, 82.0], [79.9, 80.8, 81.7], "within noise"),  # 3.5 standard errors: of three seeds not enough
        ([80.0], [70.0, 60.0], "one seed"),
        ([80.0, 81.0], [], "not run"),
    ],
)
def test_a_row_is_better_seed_by_seed(
    tmp_path: Path, magnitude: list[float], taylor: list[float], verdict: str
) -> None:
    found, text = judged(tmp_path, magnitude, taylor)
    assert found["magnitude beats Taylor"] == found["and at batch 1 too"] == verdict
    assert found["it beats what is not here"] == "not run"
    assert f"| magnitude beats Taylor | {verdict} | over Taylor: " in text


def test_the_evidence_is_every_seed(tmp_path: Path) -> None:
    _, text = judged(tmp_path, [80.0, 81.0, 82.0], [79.0, 79.9, 81.1])
    assert "over Taylor: +1.00 ± 0.06 points (+1.00, +1.10, +0.90)" in text
    assert "apart, of 1.5 allowed: 1.00 ± 0.00 points (1.00, 1.00, 1.00)" in text


def test_a_row_is_flat_over_batch_sizes_in_every_seed(tmp_path: Path) -> None:
    found, _ = judged(tmp_path, [80.0, 81.0], [])
    assert (found["magnitude is flat"], found["magnitude is flatter"]) == ("holds", "does not hold")


def test_claims_about_rows_of_another_scale_are_left_out(tmp_path: Path) -> None:
    text = ABLATION.replace("  - name: Taylor\n", "  - name: Taylor\n    only: [own]\n") + CLAIMS
    path, out = write_small(tmp_path, text), tmp_path / "out"
    assert main(["ablate", str(path), "--out", str(out), "--scale", "papers", "--table"]) == 0
    found = json.loads((out / "tables" / "small-table-papers.json").read_text())["claims"]
    assert len(found) == 3


WRONG = """\
claims:
  - {text: a, row: magnitud, better_than: [Tailor]}
  - {text: b, row: magnitude, better_than: [magnitude]}
  - {text: c, row: magnitude}
  - {text: d, row: magnitude, better_than: [Taylor], flat_within: 1}
  - {text: e, row: magnitude, flat_within: 1}
"""

WRONG_WORDS = """\
6 mistakes
table.yaml:28:15 claims[0].row: there is no row 'magnitud'; did you mean 'magnitude'?
table.yaml:28:44 claims[0].better_than[0]: there is no row 'Tailor'; did you mean 'Taylor'?
table.yaml:29:31 claims[1].better_than: a row is not better than itself; name others
table.yaml:30:5 claims[2]: a claim has either better_than or flat_within; give one of them
table.yaml:31:5 claims[3]: a claim has either better_than or flat_within; give one of them
table.yaml:32:5 claims[4].on: flat_within compares columns; name two or more, such as top1@1 and top1@256"""


def test_claims_that_nothing_could_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path, ABLATION + WRONG)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        read_ablation("table.yaml")
    assert str(caught.value) == WRONG_WORDS


def test_only_accuracies_are_compared(tmp_path: Path) -> None:
    claim = "claims:\n  - {text: a, row: Taylor, better_than: [magnitude], on: [macs]}\n"
    with pytest.raises(RecipeError, match=r"claims\[0\]\.on\[0\]: 'macs' is no accuracy; write top1, top1@32 or"):
        read_ablation(write_small(tmp_path, ABLATION + claim))
