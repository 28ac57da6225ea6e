"""Plans are plain data: they compose, travel as JSON, and refuse what is not a plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from usdcore.errors import UsdcoreError
from usdcore.plans import Attach, Base, Drop, Keep, Plan, parse_plan

subsets = st.sets(st.integers(0, 19), min_size=1).map(lambda s: tuple(sorted(s)))
BASE = Base(name="vit", num_classes=3, input_shape=(3, 8, 8))


@given(first=subsets, data=st.data())
def test_indices_are_stored_in_base_coordinates(first: tuple[int, ...], data: st.DataObject) -> None:
    second = data.draw(st.sets(st.integers(0, len(first) - 1), min_size=1).map(lambda s: tuple(sorted(s))))
    plan = Plan().then([Keep(group="g", indices=first)]).then([Keep(group="g", indices=second)])
    assert plan.keep("g") == tuple(first[i] for i in second)


@given(indices=subsets, branch=st.text(min_size=1, max_size=300).filter(str.isprintable))
def test_round_trip(indices: tuple[int, ...], branch: str) -> None:
    attach = Attach(site="b", plugin="p", distribution="d", version="1", config={"threshold": 0.1})
    plan = Plan(base=BASE, records=(Keep(group="g", indices=indices), Drop(branch=branch), attach))
    assert parse_plan(plan.model_dump_json(), "here") == plan


def test_what_was_never_named_is_whole() -> None:
    assert Plan().keep("g") is None


def test_the_last_gate_of_a_site_counts() -> None:
    gates = [Attach(site="b", plugin="p", distribution="d", version="1", config={"k": k}) for k in (1, 2)]
    assert [record.config for record in Plan().then(gates).attached.values()] == [{"k": 2}]


def test_out_of_range_in_a_later_plan() -> None:
    with pytest.raises(UsdcoreError, match="g: index 2 is out of range, 2 entries are left"):
        Plan().then([Keep(group="g", indices=(3, 5))]).then([Keep(group="g", indices=(2,))])


@pytest.mark.parametrize("indices", [(), (1, 0), (1, 1), (-1,)])
def test_bad_indices(indices: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        Keep(group="g", indices=indices)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"records": [{"record": "run", "code": "x"}]}',
        '{"base": {"name": "../../etc"}}',
    ],
)
def test_not_a_plan(text: str) -> None:
    with pytest.raises(UsdcoreError, match="file: not a plan of format 1: "):
        parse_plan(text, "file")


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "format": 1}', '{"base": NaN}', "[" * 5000, '{"x": 1e999}'])
def test_not_json(text: str) -> None:
    with pytest.raises(UsdcoreError, match="file: not the JSON that usdcore writes"):
        parse_plan(text, "file")


def test_another_format() -> None:
    with pytest.raises(UsdcoreError, match="file: its plan is of format 2, and this usdcore reads format 1"):
        parse_plan('{"format": 2}', "file")
