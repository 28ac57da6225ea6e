from __future__ import annotations

import csv

import pytest
from report.svgs import beyond, collisions, texts

from usdcore.report.overview import Model, draw_overview
from usdcore.report.result import Layer


@pytest.fixture
def model(layers):
    def make(name="ours", num_layers=12, gated=True):
        found = [Layer.model_validate(layer) for layer in layers(num_layers, gated)]
        return Model(name, "seed 0", tuple(found))

    return make


def test_every_layer_of_every_model_is_drawn_and_nothing_lies_on_anything(model, tmp_path):
    models = [model("first <i>"), model("second", 14), model("third", 4, gated=False)]
    svg, _, numbers = draw_overview(models, "A title", "a line", tmp_path / "layers")
    words = [one.text for one in texts(svg)]
    assert {"first <i>", "second", "third", "pruned", "0.87", "G1", "1536", "13"} <= set(words)
    assert collisions(svg) == []
    assert beyond(svg) == []
    with numbers.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (12 + 14 + 4)
    assert rows[0] == {
        "model": "first <i>",
        "block": "blocks.0",
        "gate_network": "G1",
        "unit": "MHSA",
        "branch": "blocks.0.attn",
        "kept": "6",
        "dense": "6",
        "execution_rate": "1.0",
    }


def test_many_models_are_drawn_up_to_a_bound(model, tmp_path, monkeypatch):
    monkeypatch.setattr("usdcore.report.overview.MOST_MODELS", 2)
    models = [model(f"model {i}", 1) for i in range(4)]
    svg, _, numbers = draw_overview(models, "t", "l", tmp_path / "layers")
    words = [one.text for one in texts(svg)]
    assert "model 1" in words
    assert "model 2" not in words
    assert "model 3," in numbers.read_text()
