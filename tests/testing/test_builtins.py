"""Every built-in plugin keeps the laws of its kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from usdcore.hooks import KINDS, registry
from usdcore.testing import conformance

ONE = ("vit",)
TWO = ("layer_scale", "swiglu")

# Pairs of built-in strategies are tried once; each one on every model where its gates act inside of it.
TestStatic = conformance("usdc-static", beside=["usdc-dynamic", "uvc", "prune", "distill"])
TestDynamic = conformance("usdc-dynamic", options={"init_logit": 0.5}, beside=["uvc", "prune", "distill"])
TestUvc = conformance("uvc", options={"within": 10.0}, models=TWO, beside=["prune", "distill"])
TestPrune = conformance("prune", options={"v_dims": True, "qk_dims": True}, models=TWO, beside=["distill"])
OTHERS = dict.fromkeys(("exports", "plan_survives", "neutral_equals_original"), "as with the default importance")
TestTaylor = conformance("prune", options={"importance": "taylor"}, models=ONE, beside=[], without=OTHERS)
TestUnstructured = conformance(
    "prune-unstructured", options={"sparsity": 0.5, "every": 2}, models=ONE, beside=["prune"]
)
TestDistill = conformance("distill", options={"features": {"layers": [0, 1]}}, models=TWO, beside=[])
# In training a distilled model gives both tokens' logits to who learns from a teacher; so it is told not to.
TOKEN = dict.fromkeys(("state_resumes", "exports", "plan_survives"), "as with one token")
TestDistillToken = conformance("distill", options={"token": "class"}, models=["distilled"], beside=[], without=TOKEN)

# Of 16 patches each weighs much: a budget that a whole number of them meets.
TestDynamicVit = conformance("dynamicvit", models=ONE, beside=["usdc-static", "distill"], budget={"macs": 0.691})
DRAWN = {"exports": "an exported program draws once", "meets_the_budget": "a rate needs more than 16 images"}
TestRandomGates = conformance("random-gates", options={"keep_first": 0}, models=ONE, beside=["distill"], without=DRAWN)
TestTome = conformance("tome", models=ONE, beside=["usdc-static", "distill"])
TestAdaVit = conformance("adavit", models=ONE, beside=["usdc-static", "distill"])

INSIDE = ("learns", "cost_equals_counted", "state_resumes", "plan_survives", "two_processes_agree")
SAME = dict.fromkeys(INSIDE, "the same class as a network that is tried")
TestG1 = conformance("G1", kind="gate-network", models=ONE)
TestG2 = conformance("G2", kind="gate-network", models=ONE, without=SAME)
TestG3 = conformance("G3", kind="gate-network", models=ONE, without={"two_processes_agree": "it holds no statistics"})
TestG4 = conformance("G4", kind="gate-network", models=ONE, without={"two_processes_agree": "it holds no statistics"})
TestG5 = conformance("G5", kind="gate-network", models=ONE)
TestG6 = conformance("G6", kind="gate-network", models=ONE, without=SAME)
TestG7 = conformance("G7", kind="gate-network", models=ONE, without=SAME)
TestG8 = conformance("G8", kind="gate-network", models=ONE, without=SAME)
TestG9 = conformance("G9", kind="gate-network", models=ONE, without=SAME)

FEW = dict.fromkeys((*INSIDE[1:], "neutral_equals_original"), "a split acts in training alone")
TestAverage = conformance("average", kind="split", options={"size": 3}, models=ONE, without=FEW)
TestRandom = conformance("random", kind="split", options={"high": 4}, models=ONE)
TestRecursive = conformance("recursive", kind="split", models=ONE, without=FEW)

TestDigits = conformance("digits", kind="data-source", options={"augment": "shift"})


class TestTimm(conformance("timm", kind="data-source", options={"root": "none", "augment": "basic"})):  # type: ignore[misc]
    """On a folder of images that it is given."""

    @pytest.fixture(autouse=True)
    def _images(self, tmp_path: Path) -> None:
        draw = np.random.default_rng(0)
        for split, name in ((s, n) for s in ("train", "validation") for n in ("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = draw.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        self.subject = self.subject.with_options(root=str(tmp_path))


TestT2T = conformance(
    "t2t_vit_14",
    kind="backbone",
    options={"input_shape": [3, 64, 64], "img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3},
)


def test_nothing_is_left_out() -> None:
    tried = {(t.subject.kind, t.subject.name) for name, t in globals().items() if name.startswith("Test")}
    own = {(kind, name) for kind in KINDS for name in registry().names(kind)}
    own = {pair for pair in own if registry().plugin(*pair).distribution == "usdcore"}
    assert {pair for pair in own - tried if not pair[1].startswith("t2t_vit_")} == set()
