"""The page about ablations shows what works, and names all that there is."""

from __future__ import annotations

import re
from pathlib import Path

from usdcore.ablate import columns
from usdcore.ablate.loading import at_scale, read_ablation
from usdcore.ablate.schema import At, Row, Scale

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ablations.md").read_text()


def test_the_table_in_the_page_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("../recipes", str(ROOT / "recipes")))
    assert len(at_scale(read_ablation(path)).lines) == 5


def test_every_key_and_column_is_in_the_page() -> None:
    for section in (Row, At, Scale):
        for key in section.model_fields:
            assert f"`{key}`" in PAGE or f" {key}:" in PAGE, key
    for key in columns.TITLES:
        assert f"`{key}`" in PAGE, key


def test_every_table_is_in_the_page() -> None:
    for path in (ROOT / "recipes" / "paper").glob("*.yaml"):
        assert path.name in PAGE or re.fullmatch(r"usdc_table[1-5]\.yaml", path.name), path.name
