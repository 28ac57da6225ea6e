from __future__ import annotations

import itertools
import time

import pytest
import torch
from torch import nn

from usdcore import latency
from usdcore.errors import UsdcoreError
from usdcore.latency import Timing, measure_latency

SHAPE = (3, 4, 4)


class Probe(nn.Module):
    """Remembers what it was called with, and in which state."""

    def __init__(self, name="probe", calls=None, seconds=0.0):
        super().__init__()
        self.name, self.calls, self.seconds = name, [] if calls is None else calls, seconds
        self.inner = nn.Dropout()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        state = (self.training, self.inner.training, torch.is_inference_mode_enabled(), torch.get_num_threads())
        self.calls.append((self.name, x[:, 0, 0, 0].tolist(), x.dtype, state))
        time.sleep(self.seconds)
        return x


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(latency, "ROUND_SECONDS", 1e-3)
    monkeypatch.setattr(latency, "WARM_UP_SECONDS", 0)


def test_every_model_has_a_row_for_every_batch_size():
    models = {"dense": nn.Flatten(), "small": Probe(), "half": Probe().half()}
    rows = measure_latency(models, SHAPE, [1, 3], Timing(rounds=3))
    assert list(rows) == ["dense", "small", "half"]
    for name, found in rows.items():
        assert [row["batch_size"] for row in found] == [1, 3]
        for row in found:
            assert row["median_ms"] > 0
            assert row["iqr_ms"] >= 0
            assert (row["rounds"], row["device"]) == (3, "cpu")
            assert row["dtype"] == ("float16" if name == "half" else "float32")
    assert [row["ratio_to_dense"] for row in rows["dense"]] == [1.0, 1.0]


def test_the_ratio_is_to_the_first_model():
    models = {"fast": Probe(seconds=0.001), "slow": Probe(seconds=0.005)}
    rows = measure_latency(models, SHAPE, [1], Timing(rounds=3))
    assert 2 < rows["slow"][0]["ratio_to_dense"] < 7
    assert rows["slow"][0]["median_ms"] > 5


def test_rounds_are_interleaved_and_see_the_same_images():
    calls = []
    models = {name: Probe(name, calls) for name in "abc"}
    inputs = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, *SHAPE)
    measure_latency(models, SHAPE, [2], Timing(rounds=4), inputs=inputs)
    order = [name for name, _ in itertools.groupby(calls, key=lambda call: call[0])]
    rounds = [order[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(names) == list("abc") for names in rounds)
    assert len(set(map(tuple, rounds))) > 1
    for name in "abc":
        seen = [images for images, _ in itertools.groupby(call[1] for call in calls if call[0] == name)]
        assert seen == [[0, 1], [2, 3], [4, 0], [1, 2]]


def test_few_images_are_tiled_to_the_batch():
    probe = Probe()
    measure_latency(
        {"a": probe}, SHAPE, [5], Timing(rounds=1), inputs=torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, *SHAPE)
    )
    assert probe.calls[0][1] == [0, 1, 0, 1, 0]


def test_images_without_inputs_are_the_same_every_time():
    first, second = Probe(), Probe()
    measure_latency({"a": first}, SHAPE, [2], Timing(rounds=1))
    torch.rand(3)
    measure_latency({"a": second}, SHAPE, [2], Timing(rounds=1))
    assert first.calls[0][1] == second.calls[0][1]


def test_models_run_in_eval_and_come_back_as_they_were():
    probe = Probe()
    probe.train()
    probe.inner.eval()
    threads = torch.get_num_threads()
    random_state = torch.get_rng_state()
    rows = measure_latency({"a": probe}, SHAPE, [1], Timing(rounds=1, threads=threads + 1))
    assert {call[3] for call in probe.calls} == {(False, False, True, threads + 1)}
    assert rows["a"][0]["threads"] == threads + 1
    assert (probe.training, probe.inner.training) == (True, False)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)


class OutOfMemory(nn.Module):
    def forward(self, x):
        raise torch.OutOfMemoryError("no")


def test_a_batch_that_does_not_fit_is_the_users_to_mend_and_the_modes_come_back():
    model = OutOfMemory()
    with pytest.raises(UsdcoreError, match="batch of 64 does not fit into the memory of cpu"):
        measure_latency({"a": model}, SHAPE, [64], Timing(rounds=1))
    assert model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "no model was given"),
        ({"batch_sizes": []}, "must be one or more numbers from 1 up"),
        ({"batch_sizes": [4, 0]}, "must be one or more numbers from 1 up"),
        ({"timing": Timing(rounds=0)}, "at least one round"),
        ({"inputs": torch.zeros(2, 3, 5, 5)}, r"images of shape \(N, 3, 4, 4\) are needed"),
        ({"inputs": torch.zeros(0, *SHAPE)}, "with N from 1 up"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {"models": {"a": nn.Flatten()}, "input_shape": SHAPE, "batch_sizes": [1]} | change
    with pytest.raises(UsdcoreError, match=message):
        measure_latency(**arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_synchronised_and_models_go_home():
    """A matmul takes far longer than its launch: without synchronising, both models would seem equally fast."""

    class Multiply(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.weight, self.times = nn.Parameter(torch.rand(2048, 2048)), times

        def forward(self, x):
            for _ in range(self.times):
                out = self.weight @ self.weight
            return out

    models = {"one": Multiply(1), "eight": Multiply(8)}
    rows = measure_latency(models, SHAPE, [1], Timing(rounds=5, device="cuda"))
    assert 5 < rows["eight"][0]["ratio_to_dense"] < 11
    assert models["one"].weight.device.type == "cpu"
