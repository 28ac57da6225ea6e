"""What several processes share, without any second process: rows, batches, messages, digests."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY
from zoo import INPUT

from usdcore.engine import board as boards
from usdcore.engine.board import Board, PeerLost
from usdcore.engine.buckets import SIZE, buckets, running_statistics
from usdcore.engine.data import DataSets, eval_loader, train_loader
from usdcore.engine.digest import digest
from usdcore.engine.evaluate import calibration_batches
from usdcore.engine.optim import Objective
from usdcore.engine.own import mine, with_all
from usdcore.engine.processes import ALONE, Processes, launched, started
from usdcore.engine.spread import OwnDraws, batch_norm_warning, notes, require_spread, rows_of
from usdcore.engine.stop import Stop
from usdcore.errors import UsdcoreError
from usdcore.recipe import Recipe, TrainConfig, load_recipe


class Numbers(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Image i is full of i."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full(INPUT, float(index)), index % 3


def shown(loader: Any) -> list[list[int]]:
    return [[int(image[0, 0, 0]) for image in batch[0]] for batch in loader]


@given(st.integers(1, 9), st.integers(1, 12))
def test_rows_are_shared_out_and_pairs_stay_together(world: int, each: int) -> None:
    batch = world * each
    rows = [rows_of(batch, rank, world) for rank in range(world)]
    assert sorted(row for own in rows for row in own) == list(range(batch))
    assert {len(own) for own in rows} == {each}
    if each % 2 == 0:
        assert all([batch - 1 - row for row in reversed(own)] == own for own in rows)
    assert rows_of(batch, 0, 1) == list(range(batch))


@pytest.mark.parametrize("world", [2, 4])
def test_mixed_rows_are_rows_of_the_mixed_batch(world: int) -> None:
    objective = Objective(TrainConfig(lr=1e-3, mixup=0.5, cutmix=0.5), 3)
    images = torch.randn(16, *INPUT, generator=torch.Generator().manual_seed(0))
    target = torch.arange(16) % 3

    def mixed(rows: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        np.random.seed(seed)
        return objective.mix(images[rows].clone(), target[rows])

    for seed in range(6):  # both mixup and cutmix
        whole = mixed(list(range(16)), seed)
        for rank in range(world):
            rows = rows_of(16, rank, world)
            assert all(torch.equal(own, all_[rows]) for own, all_ in zip(mixed(rows, seed), whole, strict=True))


@pytest.mark.parametrize(("length", "start"), [(23, 0), (23, 1), (6, 0)])
def test_processes_share_the_batches_of_one(length: int, start: int) -> None:
    data, config = (DataSets(*[Numbers(length)] * 3, 3, 3, "", "0"), SimpleNamespace(batch_size=8, workers=0))
    whole = shown(train_loader(data, config, 3, 1, start))
    for rank in range(2):
        rows = rows_of(min(8, length), rank, 2)
        own = shown(train_loader(data, config, 3, 1, start, rows=rows))
        assert own == [[batch[row] for row in rows] for batch in whole]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_batches_are_taken_in_turn(world: int) -> None:
    whole = shown(eval_loader(Numbers(23), 6, seed=1))
    turns = [shown(eval_loader(Numbers(23), 6, seed=1, turn=(rank, world))) for rank in range(world)]
    assert [len(batch) for batch in whole] == [6, 6, 6, 5]
    assert turns == [whole[rank::world] for rank in range(world)]
    device = torch.device("cpu")
    for images, left in ((23, 3), (12, 2), (4, 1)):
        held = [
            len(list(calibration_batches(Numbers(23), 6, 1, images, device, Processes(rank, world))()))
            for rank in range(world)
        ]
        assert sum(held) == left


def recipe_of(tmp_path: Path, *overrides: str) -> Recipe:
    (tmp_path / "r.yaml").write_text(TINY)
    return load_recipe(tmp_path / "r.yaml", overrides)


@pytest.mark.parametrize(
    ("world", "images", "override", "words"),
    [
        (
            3,
            1437,
            "train.mixup=0",
            "128 images can't be shared evenly by 3 .*; use data.batch_size 126 or data.*129, or",
        ),
        (
            128,
            1437,
            "data.batch_size=128",
            "in pairs of images that are mixed; use data.batch_size 256, or another number",
        ),
        (
            4,
            90,
            "train.mixup=0",
            r"90 images \(all that there are\) can't be shared evenly.*; use data.batch_size 88, or",
        ),
        (2, 1437, "phases.1.strategies.1.split={use: average, size: 100}", r"usdc-dynamic|average\.size.*64 images"),
    ],
)
def test_what_cant_be_shared(tmp_path: Path, world: int, images: int, override: str, words: str) -> None:
    recipe = recipe_of(tmp_path, override)
    require_spread(recipe, images, 1)
    with pytest.raises(UsdcoreError, match=words):
        require_spread(recipe, images, world)


def test_what_is_said_of_groups_and_batch_norm(tmp_path: Path) -> None:
    recipe, two = recipe_of(tmp_path), Processes(0, 2)
    assert notes(recipe, two, 128) == [
        "2 processes, each with 64 of the 128 images of a step",
        "usdc-dynamic: groups are split within each process's 64 images",
    ]
    assert notes(recipe, ALONE, 128) == []
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    assert "over the 64 images of its own process and not over the 128" in str(batch_norm_warning(model, two, 128))
    assert batch_norm_warning(model, ALONE, 128) is None
    assert batch_norm_warning(model[0], two, 128) is None
    assert len(running_statistics(model)) == 2


def test_alone_nothing_is_asked() -> None:
    x = torch.randn(3, requires_grad=True)
    with started(False) as processes:
        assert processes is ALONE
        assert not dist.is_initialized()
        assert processes.mean(x) is x
        assert processes.largest(x) is x
        assert processes.any(True, False) == (True, False)
        assert processes.exchange("a") == ["a"]
        assert processes.from_first(lambda: 3) == 3
        assert processes.gather({"a": x}) == []
        processes.same_everywhere("a", "nothing")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "not MASTER_ADDR, MASTER_PORT: start several processes with torchrun"),
        ({"WORLD_SIZE": "two"}, "is no number"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP, and here every process holds the whole model"),
    ],
)
def test_half_a_launcher(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsdcoreError, match=words):
        launched()


def test_one_of_one_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert launched() == (0, 1, 0)


def together(world: int, work: Callable[[Board], Any]) -> list[Any]:
    """`work` with each board, in threads; what it gave or raised."""
    store, found = dist.HashStore(), [None] * world

    def one(rank: int) -> None:
        board = Board(store, rank, world)
        try:
            with board.beating():
                found[rank] = work(board)
        except BaseException as error:
            found[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.02), ("PATIENCE", 0.3), ("SUSPICION", 0.2), ("FAREWELL", 0.1)):
        monkeypatch.setattr(boards, name, seconds)


@pytest.mark.usefixtures("hasty")
def test_messages() -> None:
    def work(board: Board) -> Any:
        first = board.exchange([board.rank, None])
        told = [board.from_first(lambda: {"rank": board.rank}) for _ in range(3)]
        last = board.exchange(1.5)
        board.leave()
        return first, told, last

    assert together(3, work) == [([[0, None], [1, None], [2, None]], [{"rank": 0}] * 3, [1.5] * 3)] * 3


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("end", "kind", "words"),
    [
        (lambda board: board.note("error", "the disk is full"), PeerLost, "^process 1 ended: the disk is full$"),
        (lambda board: board.interrupt(), KeyboardInterrupt, "^$"),
        (lambda board: None, PeerLost, "^process 1 of 3 went silent: it was killed, .*same command again"),
    ],
    ids=["error", "interrupted", "killed"],
)
def test_how_one_ends_is_known_to_all(end: Callable[[Board], None], kind: type[BaseException], words: str) -> None:
    def work(board: Board) -> Any:
        if board.rank == 1:
            return end(board)
        return board.exchange("x")

    for rank, error in enumerate(together(3, work)):
        if rank != 1:
            assert type(error) is kind
            assert re.search(words, str(error))
            assert not isinstance(error, PeerLost) or error.is_mine_to_say == (rank == 0 and "silent" in str(error))


@pytest.mark.usefixtures("hasty")
def test_whoever_takes_long_is_waited_for() -> None:
    assert together(2, lambda board: board.from_first(lambda: time.sleep(0.8))) == [None, None]


def test_digests_tell_states_apart() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    flipped = x.clone()
    flipped[1, 2] = torch.nextafter(x[1, 2], torch.tensor(9.0))
    states = [x, x.reshape(3, 2), x.flip(0), x.double(), flipped, x > 2, x > 3, x.bfloat16(), torch.zeros(0), x[0, 0]]
    states += [{"a": x}, {"b": x}, [x, 1], [x, 1.0000001], [x, None], "x"]
    assert len({digest(state) for state in states}) == len(states)
    assert digest({"a": x.t(), "b": 1}) == digest({"b": 1, "a": x.t().clone()})


def test_what_is_a_processs_own_comes_back_to_it() -> None:
    class Three(Processes):
        def gather(self, tree: Any) -> list[Any]:
            return [{"learner": {"seen": [rank]}} for rank in (1, 2)]

    strategies: Any = {"learner": SimpleNamespace(own={"seen"}), "other": SimpleNamespace(own=set())}

    def state() -> dict[str, Any]:
        saved = {"learner": {"seen": [0], "weight": 5}, "other": {"seen": [0]}}
        return {"strategies": saved, "fit": {"strategies": {"learner": dict(saved["learner"])}}}

    written = with_all(state(), strategies, Three(0, 3))
    for rank, seen in ((0, 0), (1, 1), (2, 2), (3, 1)):
        read = mine({**state(), "own": written["own"]}, Processes(rank, 4))
        assert read["strategies"]["learner"] == read["fit"]["strategies"]["learner"] == {"seen": [seen], "weight": 5}
        assert read["strategies"]["other"] == {"seen": [0]}
    assert mine({**state(), "fit": None}, Processes(1, 2))["strategies"]["learner"]["seen"] == [0]


def test_own_draws_differ_and_the_common_ones_go_on() -> None:
    model, x = torch.nn.Dropout(0.5), torch.ones(64)
    model.register_forward_pre_hook(lambda module, args: common.append(float(torch.rand(()))))
    found, common, after = [], [], []
    for seed in (1, 2):
        torch.manual_seed(0)
        with OwnDraws(model, seed, torch.device("cpu")):
            found.append(model(x))
        after.append(float(torch.rand(())))
    torch.manual_seed(0)
    assert common[0] == common[1] == float(torch.rand(()))
    assert after[0] == after[1] == float(torch.rand(()))
    assert not torch.equal(*found)
    assert len(model._forward_pre_hooks) == 1


def test_buckets_hold_one_kind_and_are_bounded() -> None:
    large = [torch.empty(SIZE // 2 + 1, device="meta") for _ in range(3)]
    mixed = [torch.empty(3), torch.empty(2, dtype=torch.float64), torch.empty(4)]
    assert list(buckets(large)) == [[0], [1], [2]]
    assert list(buckets(mixed)) == [[0, 2], [1]]
    assert list(buckets([])) == []


def test_a_second_signal_from_a_launcher_is_not_the_end() -> None:
    stop = Stop(is_one_of_several=True)

    def signalled_twice() -> None:
        with stop.held():
            stop(15, None)
            stop(15, None)

    with pytest.raises(KeyboardInterrupt):
        signalled_twice()
