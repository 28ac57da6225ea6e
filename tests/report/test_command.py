from __future__ import annotations

import json

from click.testing import CliRunner

from usdcore.cli.report import command
from usdcore.errors import UsdcoreError


def invoke(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)))


def test_prints_the_table_the_verdict_and_the_place(run_dir):
    run = run_dir()
    answer = invoke(run)
    assert answer.exit_code == 0
    assert "78.96 %" in answer.output
    assert "The budget is met" in answer.output
    assert f"report: {run / 'report.html'}" in answer.output
    assert (run / "report.html").is_file()


def test_json(run_dir):
    run = run_dir()
    answer = json.loads(invoke(run, "--json").output)
    assert answer["run"] == str(run)
    assert answer["budget_met"] is True
    assert answer["table"][0]["compressed"] == "78.96 % (-0.89)"
    assert str(run / "report.md") in answer["files"]
    assert answer["notes"] == []


def test_an_unfinished_run_is_the_users_mistake(tmp_path):
    answer = invoke(tmp_path)
    assert isinstance(answer.exception, UsdcoreError)
    assert "usdcore run" in str(answer.exception)
