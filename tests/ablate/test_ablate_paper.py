"""The papers' tables: each is valid at every scale, and what needs no training is what the papers print."""

from __future__ import annotations

from pathlib import Path

import pytest

from usdcore.ablate.exact import Exact
from usdcore.ablate.jobs import plan_jobs
from usdcore.ablate.loading import Table, at_scale, read_ablation
from usdcore.plans import Drop, parse_plan

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
FILES = sorted(PAPER.glob("*.yaml"))
SCALES = ("imagenet", "cifar10", "smoke")


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact()


def table(name: str, scale: str = "imagenet") -> Table:
    return at_scale(read_ablation(PAPER / f"{name}.yaml"), scale)


def values(exact: Exact, name: str, row: str) -> dict[str, float]:
    (line,) = [line for line in table(name).lines if line.row.name == row]
    return exact.values(line)


def test_all_tables_are_there() -> None:
    usdc = {f"usdc_table{number}" for number in range(1, 6)} | {"usdc_figure5"}
    assert {path.stem for path in FILES} >= usdc | {"uvc_deit_small", "uvc_deit_tiny", "uvc_parts"}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_table_is_valid_at_every_scale(path: Path, scale: str, tmp_path: Path) -> None:
    found = at_scale(read_ablation(path), scale)
    assert set(found.ablation.scales) == set(SCALES)
    assert found.scale.is_papers == (scale == "imagenet")
    jobs = plan_jobs(found, tmp_path)
    for line in found.lines:
        is_run = line.missing is None and line.row.structure is None
        assert len(jobs.of(line.row.name, found.seeds)) == (len(found.seeds) if is_run else 0)


@pytest.mark.parametrize("scale", SCALES)
def test_the_same_run_serves_several_tables(scale: str, tmp_path: Path) -> None:
    places = {"usdc_table1": "USDC (DeiT-S)", "usdc_table2": "searched", "usdc_table3": "static and dynamic"}
    places["usdc_table5"] = "recursive"
    keys = {plan_jobs(table(name, scale), tmp_path).of(row, [0])[0].key for name, row in places.items()}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("name", "row", "params", "macs"),
    [
        ("usdc_table1", "ViT-base", 86_567_656, 17_563_828_224),
        ("usdc_table1", "DeiT-S", 22_050_664, 4_598_882_304),
        ("usdc_table1", "T2T-14", 21_545_550, 4_783_468_544),
        ("usdc_table4", "T2T-ViT-19", 39_177_422, 8_479_682_176),
        ("usdc_figure5", "DeiT-S", 22_050_664, 4_598_882_304),
        ("uvc_deit_small", "DeiT-S", 22_050_664, 4_598_882_304),
        ("uvc_deit_tiny", "DeiT-Tiny", 5_717_416, 1_253_683_200),
        ("uvc_deit_tiny", "DeiT-Tiny, distilled", 5_910_800, 1_261_003_776),
    ],
)
def test_dense_rows_cost_what_is_known(exact: Exact, name: str, row: str, params: int, macs: int) -> None:
    found = values(exact, name, row)
    assert (found["params"], found["macs"], found["executed_macs"]) == (params, macs, macs)


def test_dense_rows_agree_with_what_the_papers_print(exact: Exact) -> None:
    for name in ("usdc_table1", "usdc_table4", "uvc_deit_small", "uvc_deit_tiny"):
        for line in table(name).lines:
            if line.row.model == "dense":
                found = exact.values(line)
                for key in ("params", "executed_macs"):
                    claim = line.row.paper.get(key)
                    # They print two or three digits; that much is rounding.
                    assert claim is None or found[key] == pytest.approx(claim, rel=0.04), (name, line.row.name, key)


@pytest.mark.parametrize(("row", "flops", "printed"), [("all G9", 890_520, 0.89), ("all G2", 18_456, 0.02)])
def test_gate_networks_cost_what_the_paper_counts(exact: Exact, row: str, flops: int, printed: float) -> None:
    found = values(exact, "usdc_table2", row)["gate_flops"]
    assert found == flops
    assert round(found / 1e6, 2) == printed


def test_a_searched_gate_network_is_not_known_before(exact: Exact) -> None:
    assert values(exact, "usdc_table2", "searched") == {}


def test_figure_5_static_part(exact: Exact) -> None:
    found = values(exact, "usdc_figure5", "printed, static part")
    assert found["macs"] == 3_446_068_992 + 58_186_752
    assert found["executed_macs"] == found["macs"]
    assert found["params"] == pytest.approx(16.786e6, abs=500)
    assert 100 * found["block_share"] == pytest.approx(74.93, abs=0.005)
    assert 100 * found["share"] == pytest.approx(76.20, abs=0.005)


def test_figure_5_at_its_rates(exact: Exact) -> None:
    found = values(exact, "usdc_figure5", "printed, with gates and rates")
    assert found["gate_flops"] == 454_488
    assert 100 * found["block_share"] == pytest.approx(57.19, abs=0.005)
    assert 100 * found["share"] == pytest.approx(58.46, abs=0.01)
    assert found["macs"] == 3_504_255_744 + found["gate_macs"]


def test_figure_5_is_a_plan(exact: Exact) -> None:
    (line,) = [line for line in table("usdc_figure5").lines if line.row.name == "printed, with gates and rates"]
    found = exact.structure(line)
    plan = parse_plan(found.plan.model_dump_json(), "the plan")
    assert plan == found.plan
    assert [record.branch for record in plan.records if isinstance(record, Drop)] == [
        "blocks.3.attn",
        "blocks.7.mlp",
        "blocks.10.mlp",
    ]
    assert len(plan.kept_groups["blocks.0.attn:heads"]) == 4
    assert len(plan.kept_groups["blocks.9.mlp:hidden"]) == 1047
    kept = [(layer.attention.kept, layer.ffn.kept) for layer in found.layers if layer.attention and layer.ffn]
    assert kept[3] == (0, 1306)
    assert found.layers[6].gate_network == "G9: FC+BN+ReLU+FC"


def test_a_structure_of_another_model_is_refused(exact: Exact) -> None:
    from usdcore.errors import UsdcoreError

    (line,) = [line for line in table("usdc_figure5").lines if line.row.name == "printed, static part"]
    assert line.row.structure is not None
    short = line.row.model_copy(update={"structure": line.row.structure[:11]})
    with pytest.raises(UsdcoreError, match="11 layers are printed, and the model has 12"):
        exact.structure(type(line)(short, line.recipe))
    wide = line.row.structure[0].model_copy(update={"heads": 7})
    wrong = line.row.model_copy(update={"structure": (wide, *line.row.structure[1:])})
    with pytest.raises(UsdcoreError, match=r"blocks.0.attn has 6 heads, so 7 can't be left"):
        exact.structure(type(line)(wrong, line.recipe))


@pytest.mark.parametrize("scale", ["digits", "cifar10"])
def test_all_methods_stand_side_by_side(scale: str) -> None:
    """At one budget and for equally many epochs, each row with everything that it needs."""
    found = at_scale(read_ablation(PAPER.parent / "compare" / "methods.yaml"), scale)
    jobs = plan_jobs(found, Path("nowhere"))
    recipes = [jobs.of(line.row.name, [0])[0].recipe for line in found.lines]
    assert len(recipes) == 13
    assert len({(recipe.budget.target, sum(phase.epochs for phase in recipe.phases)) for recipe in recipes}) == 1
