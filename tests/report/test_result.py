from __future__ import annotations

import json

import pytest

from usdcore.errors import UsdcoreError
from usdcore.report.result import read_result


def test_reads_what_the_engine_wrote_and_welcomes_more_keys(run_dir):
    result = read_result(run_dir(later_version="x"))
    assert result.model == "deit_small_patch16_224"
    assert [name for name, _ in result.models] == ["dense", "compressed", "narrow"]
    assert result.structure[3].attention.kept == 0


def test_an_unfinished_run_says_what_to_run(tmp_path):
    with pytest.raises(UsdcoreError, match=r"unfinished \(no result\.json\); `usdcore run RECIPE --out "):
        read_result(tmp_path)


def test_an_unfinished_run_names_its_own_recipe(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(UsdcoreError, match=r"usdcore run \S+recipe\.yaml --out "):
        read_result(tmp_path)


def test_a_folder_that_is_not_there_is_another_mistake(tmp_path):
    with pytest.raises(UsdcoreError, match="there is no such run folder"):
        read_result(tmp_path / "typo")


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsdcoreError, match="there is no such run folder"):
        read_result(tmp_path / "file")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"usdcore": "0.1.0", "budget": {"target": "half"}})])
def test_a_broken_result_names_the_file_and_the_places(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UsdcoreError, match=r"result\.json: not a result that this version") as error:
        read_result(tmp_path)
    assert len(str(error.value).splitlines()) in range(2, 8)


def test_the_place_of_a_mistake_is_named(run_dir, raw):
    with pytest.raises(UsdcoreError, match=r"budget\.target: Input should be a valid number"):
        read_result(run_dir(budget=raw()["budget"] | {"target": "half"}))
