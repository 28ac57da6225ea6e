from __future__ import annotations

import pytest

from usdcore.report import words

NO_GATES = {"networks": 0, "decisions": 0, "dynamic": 0, "macs": 0, "paper_flops": 0}


def test_a_budget_that_is_met(result):
    first, asked, search = words.budget_sentences(result())
    assert first == ("The budget is met: 72.8 % measured, 0.16 points below what was asked (tolerance 1.2 points).")
    assert "73.0 % of the dense model's multiply-accumulates" in asked
    assert "batch size 32 (gates decide once for a batch)" in asked
    assert search == "The search itself ended at 74.1 %, 1.1 points from the target, before the final projection."


def test_a_budget_that_is_missed(result, raw):
    budget = raw()["budget"] | {"met": False, "achieved": 0.771}
    expected = "The budget is MISSED: 77.1 % measured, 4.1 points above what was asked (tolerance 1.2 points)."
    assert words.verdict(result(budget=budget)) == expected


def test_a_search_that_only_the_projection_saved_is_told(result, raw):
    budget = raw()["budget"] | {"after_search": 0.91}
    assert words.budget_sentences(result(budget=budget))[2].endswith(
        "the final projection, not the search, chose the size."
    )


def test_what_was_not_measured_is_not_claimed(result, raw):
    budget = raw()["budget"] | {"achieved": None, "calibrated": None, "after_search": None, "met": False}
    first, asked = words.budget_sentences(result(budget=budget))
    assert first == "The budget was not measured: not run."
    assert "Calibrated" not in asked
    assert "Measured" not in asked


def test_only_the_shuffled_row_at_the_budgets_batch_size_and_scope_is_promised(result):
    found = result()
    statuses = [words.promise(found, row) for row in found.eval]
    assert statuses == ["reported, not promised", "promised", "reported, not promised"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({}, "at equal executed MACs and equal epochs, the compressed model's top-1 is 0.86 points above it"),
        ({"top1": 79.0}, "0.04 points below it"),
        ({"top1": 78.96}, "top-1 equals it"),
        ({"epochs": 20}, "not like for like: it was trained for 20 epochs, ours for 40"),
        ({"macs": 3_600_000_000}, "not like for like: its executed MACs are 5.4 points of dense above ours"),
        ({"top1": None}, "not run"),
    ],
)
def test_controls_are_compared_like_for_like_or_it_is_said(result, raw, change, part):
    found = result(controls=[raw()["controls"][0] | change])
    assert part in words.comparison(found, found.controls[0])


def test_gates_that_do_not_depend_on_the_input_are_counted(result):
    (sentence,) = words.gate_sentences(result())
    assert sentence.startswith("3 gate networks make 6 decisions; 4 of them really depend on the input")
    assert sentence.endswith("the other 2 almost always come out the same way.")


def test_no_gates(result):
    found = result(gates=NO_GATES)
    assert words.gate_sentences(found)[0].startswith("There are no gates")
    assert "batch size" not in words.budget_sentences(found)[1]


def test_conditions_of_a_figure_keep_the_budget_whatever_the_data_is_called(result, raw):
    provenance = raw()["provenance"]
    provenance["data"]["description"] = "long " * 40
    line = words.conditions(result(provenance=provenance))
    assert line.endswith("budget 73.0 % of dense MACs at batch size 32 (batch scope), measured 72.8 %")
    assert len(line) < 140


def test_conditions_without_gates_name_no_batch_size(result):
    assert words.conditions(result(gates=NO_GATES)) == "8x8 digits · budget 73.0 % of dense MACs, measured 72.8 %"
