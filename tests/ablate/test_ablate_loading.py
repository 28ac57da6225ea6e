"""The file format: what rows change, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from ablate.small import ABLATION, BASE, planned, write_small

from usdcore.ablate.loading import at_scale, read_ablation
from usdcore.errors import UsdcoreError
from usdcore.recipe import Recipe, RecipeError


def recipe_of(folder: Path, row: str, scale: str | None = None) -> Recipe:
    """The recipe of the only row that is added to the table."""
    text = ABLATION + f"  - {row}\n"
    found = at_scale(read_ablation(write_small(folder, text)), scale).lines[-1].recipe
    assert found is not None
    return found


def test_a_row_is_the_base_with_its_changes(tmp_path: Path) -> None:
    changed = recipe_of(tmp_path, "{name: x, set: {train.lr: 0.1, model: {kwargs: {depth: 3}}, note: null}}")
    assert changed.train.lr == 0.1
    assert changed.model.kwargs == {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
    assert changed.seed == 0


@pytest.mark.parametrize("path", ["phases.search.strategies.prune.importance", "phases.1.strategies.0.importance"])
def test_items_of_lists_go_by_name_or_number(tmp_path: Path, path: str) -> None:
    changed = recipe_of(tmp_path, f"{{name: x, set: {{{path}: random}}}}")
    assert changed.phases[1].strategies[0].importance == "random"  # type: ignore[attr-defined]


def test_items_of_lists_in_a_nested_mapping(tmp_path: Path) -> None:
    changed = recipe_of(tmp_path, "{name: x, set: {phases: {dense: {epochs: 5}, finetune: {epochs: 6}}}}")
    assert [phase.epochs for phase in changed.phases] == [5, 2, 6]


def test_what_is_removed_is_gone(tmp_path: Path) -> None:
    changed = recipe_of(tmp_path, "{name: x, remove: [phases.finetune, phases.search.train, evaluate]}")
    assert [phase.name for phase in changed.phases] == ["dense", "search"]
    assert changed.train_for(changed.phases[1]).sched == "cosine"
    assert changed.evaluate.calibration_images == 2048


def test_a_scale_adds_its_own(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("extends: base.yaml\nname: other\n")
    row = "{name: x, set: {train.lr: 0.1}, at: {papers: {base: other.yaml, set: {train.lr: 0.2}}}}"
    assert recipe_of(tmp_path, row).train.lr == 0.1
    there = recipe_of(tmp_path, row, "papers")
    assert (there.train.lr, there.name) == (0.2, "other")


def test_rows_of_other_scales_are_left_out(tmp_path: Path) -> None:
    path = write_small(tmp_path, ABLATION + "  - {name: x, only: [papers]}\n")
    assert len(at_scale(read_ablation(path)).lines) == 4
    assert len(at_scale(read_ablation(path), "papers").lines) == 5


def test_a_row_that_needs_a_plugin_is_missing_without_it(tmp_path: Path) -> None:
    path = write_small(tmp_path, ABLATION + "  - {name: x, needs: [prune, no-such], set: {no.such: option}}\n")
    line = at_scale(read_ablation(path)).lines[-1]
    assert line.recipe is None
    assert line.missing == "needs no-such, which no installed plugin registers"


def test_overrides_are_for_every_row(tmp_path: Path) -> None:
    table = at_scale(read_ablation(write_small(tmp_path)), overrides=["train.lr=0.5"])
    assert {line.recipe.train.lr for line in table.lines if line.recipe is not None} == {0.5}


def test_the_same_recipe_is_one_run_and_a_dense_row_needs_none(tmp_path: Path) -> None:
    extra = "  - {name: again, set: {phases.search.strategies.prune: {use: prune, importance: l2}}}\n"
    _, jobs = planned(write_small(tmp_path, ABLATION + extra), tmp_path / "pool")
    assert len(jobs.all) == 2
    assert jobs.of_row["again", 0] is jobs.of_row["magnitude", 0]
    assert jobs.of_row["dense", 0] is jobs.of_row["magnitude", 0]
    assert len({job.stem.key for job in jobs.all if job.stem}) == 1


def test_a_table_on_another_table(tmp_path: Path) -> None:
    write_small(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.yaml").write_text("extends: ../table.yaml\nname: mine\nseeds: [5]\n")
    table = at_scale(read_ablation(tmp_path / "sub" / "mine.yaml"))
    assert (table.ablation.name, table.seeds, len(table.lines)) == ("mine", (5,), 4)


BAD = """\
name: bad table
title: A table
paper: {cite: a, dat: b}
report: [top2, top1@x, params@32, top1, top1]
seeds: [1, 1]
scales:
  own: {base: base.yaml, data: digits, seed: [1]}
rows:
  - {name: a, sett: {}, at: {ohn: {}}, paper: {top11: 3}}
  - {name: a, model: dens}
"""

BAD_WORDS = """\
10 mistakes
table.yaml:1:1 name: 'bad table' can't name a file; use letters, digits, '.', '_' and '-', with a letter or \
digit first
table.yaml:3:1 paper.data: the key is missing; add it (the data set that the claims were measured on; it stands \
in the heading of their column)
table.yaml:3:18 paper.dat: unknown key; did you mean 'data'?
table.yaml:4:10 report[0]: there is no column 'top2'; did you mean 'top1'?
table.yaml:4:16 report[1]: there is no column 'top1@x'; did you mean 'top1'?
table.yaml:4:24 report[2]: 'params@32': only top1, executed_macs and speedup are measured at several batch sizes
table.yaml:7:40 scales.own.seed: unknown key; did you mean 'seeds'?
table.yaml:9:15 rows[0].sett: unknown key; did you mean 'set'?
table.yaml:9:48 rows[0].paper.top11: there is no column 'top11'; did you mean 'top1'?
table.yaml:10:15 rows[1].model: 'dens' is not a choice here; did you mean 'dense'?"""

TOGETHER = """\
name: bad
title: A table
paper: {cite: a, data: b}
report: [top1, top1]
seeds: [1, 1]
scales:
  own: {base: base.yaml, data: digits}
rows:
  - {name: a, at: {ohn: {}}, paper: {params: 3}}
  - {name: a, only: [onw]}
"""

TOGETHER_WORDS = """\
6 mistakes
table.yaml:4:1 report: a column is named twice; remove one
table.yaml:5:1 seeds: a seed is named twice; remove one
table.yaml:9:20 rows[0].at.ohn: there is no scale 'ohn'; did you mean 'own'?
table.yaml:9:38 rows[0].paper.params: a claim about what is not reported; valid: top1
table.yaml:10:6 rows[1].name: an earlier row is named 'a'; choose another name
table.yaml:10:22 rows[1].only[0]: there is no scale 'onw'; did you mean 'own'?"""


@pytest.mark.parametrize(("text", "words"), [(BAD, BAD_WORDS), (TOGETHER, TOGETHER_WORDS)])
def test_all_mistakes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    write_small(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        read_ablation("table.yaml")
    assert str(caught.value) == words


ROWS = """\
  - {name: a, set: {trian.lr: 0.1, phases.serch.epochs: 3, train.lr: fast}}
  - {name: b, remove: [phases.search.strategies.uvc, modle]}
  - {name: c, at: {own: {base: bse.yaml}}}
  - {name: d, set: {model.num_classes: 9, seed.a: 1}}
"""

ROWS_WORDS = """\
8 mistakes
table.yaml:27:21 trian: unknown key; did you mean 'train'? (scale own, row 'a')
table.yaml:27:36 phases.serch: phases has no 'serch' in the base; did you mean 'search'? (scale own, row 'a')
table.yaml:27:60 train.lr: 'fast' is not a number; write a number such as 1.0e-4 (scale own, row 'a')
table.yaml:28:24 phases.search.strategies.uvc: phases.search.strategies has no 'uvc' in the base; valid: prune \
(scale own, row 'b')
table.yaml:28:54 modle: the base has nothing here to remove; did you mean 'model'? (scale own, row 'b')
table.yaml:29:26 rows[6].at.own.base: there is no file bse.yaml; did you mean 'base.yaml' or 'table.yaml'? \
(scale own, row 'c')
table.yaml:30:21 model.num_classes: the data has 10 classes (digits), and this is 9; set model.num_classes to \
10 (scale own, row 'd')
table.yaml:30:43 seed.a: seed is a single value in the base, not a mapping (scale own, row 'd')"""


def test_mistakes_of_rows_have_the_tables_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path, ABLATION + ROWS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        at_scale(read_ablation("table.yaml"))
    assert str(caught.value) == ROWS_WORDS


def test_a_mistake_of_the_base_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_small(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE.replace("lr: 2.0e-3", "lr: fast"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        at_scale(read_ablation(path.name))
    assert str(caught.value) == "base.yaml:7:9 train.lr: 'fast' is not a number; write a number such as 1.0e-4"


def test_a_column_that_no_run_would_have(tmp_path: Path) -> None:
    path = write_small(tmp_path, ABLATION.replace("top1@1]", "top1@64]"))
    with pytest.raises(RecipeError, match=r"4:45 report\[4\]: top1@64: nothing is evaluated at batch size 64; add"):
        at_scale(read_ablation(path))


def test_an_unknown_scale(tmp_path: Path) -> None:
    with pytest.raises(UsdcoreError, match="it has no scale 'paper'; did you mean 'papers'"):
        at_scale(read_ablation(write_small(tmp_path)), "paper")
