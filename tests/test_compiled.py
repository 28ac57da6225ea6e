"""A compiled step is the plain step: same numbers, same names, hardly a compilation; where it can't be, it says so."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from compiling import DYNAMIC, STATIC, no_compiler, no_traces, require_close, session_of, small
from torch import Tensor, nn
from zoo import INPUT

from usdcore.compiled import CompiledForward, require_compiler
from usdcore.errors import UsdcoreError
from usdcore.session import Session
from usdcore.teachers import primary

SEARCH = {"use": "usdc-dynamic", "gate_network": "search", "space": ["G1", "G5"], "commit_at": 0.5}
#: Strategies, blocks of the model, and how often its steps are compiled: again where a search settles on its networks,
#: where UVC's gates begin to act, and where numbers that are annealed within the forward become variables.
CASES: dict[str, tuple[list[dict[str, Any]], int, int]] = {
    "dense": ([], 1, 1),
    "static and dynamic": ([STATIC, DYNAMIC], 1, 1),
    "groups by layer": ([{**DYNAMIC, "shuffle": "layer"}], 2, 1),
    "search": ([SEARCH], 1, 2),
    "uvc and distill": ([{"use": "uvc"}, {"use": "distill"}], 1, 2),
    "features": ([{"use": "distill", "kind": "features"}], 1, 1),
    "adavit": ([{"use": "adavit", "target": 0.8}], 2, 2),
    "dynamicvit": ([{"use": "dynamicvit", "keep_ratio": 0.7}], 3, 1),
    "tome": ([{"use": "tome"}], 3, 1),
}
pytestmark = pytest.mark.usefixtures(no_traces.__name__)
SLOW = ("search", "adavit", "dynamicvit", "tome")


def step(session: Session, forward: Any, optimizer: torch.optim.Optimizer, number: int) -> dict[str, Tensor]:
    """Its gradients by name."""
    generator = torch.Generator().manual_seed(number)
    images, target = torch.randn(6, *INPUT, generator=generator), torch.arange(6) % 7
    torch.manual_seed(number)
    session.begin_step(number, 6, 0, images, 1e-4)
    optimizer.zero_grad()
    output = forward(images)
    loss = session.task_weight * nn.functional.cross_entropy(primary(output), target) + session.loss(output, target)
    loss.backward()
    session.after_backward()
    found = {name: p.grad.clone() for name, p in session.model.named_parameters() if p.grad is not None}
    optimizer.step()
    session.after_step()
    return found


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in CASES]
)
def test_compiled_steps_are_the_plain_ones(case: str) -> None:
    """Over steps in which schedules move: the gradients, and the weights that they make."""
    strategies, depth, times = CASES[case]
    model, said = small(depth), list[str]()
    plain, compiled = (session_of(copy.deepcopy(model), strategies) for _ in range(2))
    forward = CompiledForward(compiled.model, "aot_eager", say=said.append)
    ways = [(plain, plain.model), (compiled, forward)]
    optimizers = [torch.optim.SGD(session.model.parameters(), lr=1e-2) for session, _ in ways]
    for number in range(6):
        one, other = (step(*way, optimizer, number) for way, optimizer in zip(ways, optimizers, strict=True))
        require_close(other, one)
    assert forward.reason is None
    assert forward.compilations == len(said) == times, said
    require_close(compiled.model.state_dict(), plain.model.state_dict())
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    assert "forward" not in copy.deepcopy(compiled.model).__dict__


class Breaks(nn.Module):
    """Has no single graph; draws, so that what it gives shows whether a draw was lost."""

    def __init__(self) -> None:
        super().__init__()
        self.host = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.host(x))
        torch._dynamo.graph_break()
        return nn.functional.dropout(x)


def test_without_one_graph_steps_are_plain_and_it_says_so_once() -> None:
    model, said = Breaks(), list[str]()
    forward, x = CompiledForward(model, "aot_eager", say=said.append), torch.randn(3, 4)
    for seed in range(3):
        torch.manual_seed(seed)
        found = forward(x)
        torch.manual_seed(seed)
        assert torch.equal(found, model(x))
    assert len(said) == 1
    assert said[0].startswith("not compiled, so it takes plain steps: ")
    assert "graph_break" in said[0]
    assert "\n" not in said[0]
    assert forward.compilations == 0


class Nervous(nn.Module):
    """Reads another constant in every step."""

    word = ""

    def forward(self, x: Tensor) -> Tensor:
        return x + len(self.word)


def test_what_is_compiled_again_and_again_is_no_longer_compiled() -> None:
    model, said, x = Nervous(), list[str](), torch.randn(2)
    forward = CompiledForward(model, "eager", say=said.append)
    for number in range(12):
        model.word = "a" * number
        assert torch.equal(forward(x), x + number)
    assert forward.compilations == len(said) - 1 == 8
    assert said[-1].startswith("not compiled, so it takes plain steps: ")
    assert "changes from step to step" in said[-1]


def test_models_of_one_class_do_not_count_for_each_other() -> None:
    x = torch.randn(2)
    for number in range(12):
        model = Nervous()
        model.word = "a" * number
        forward = CompiledForward(model, "eager", say=lambda text: None)
        forward(x)
        assert (forward.compilations, forward.reason) == (1, None)


def test_mixed_precision_and_evaluation_in_between() -> None:
    model, images = small(1), torch.randn(2, *INPUT)
    forward = CompiledForward(model, "aot_eager", say=lambda text: None)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, wanted = forward(images), model.train()(images)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, wanted)
        with torch.no_grad():
            model.eval()(images)
        model.train()
    assert forward.compilations == 1


@no_compiler
def test_a_compiler_is_asked_for_before_it_is_needed() -> None:
    cpu = torch.device("cpu")
    require_compiler(cpu, "aot_eager", "default")
    with pytest.raises(UsdcoreError, match=r"inductor does not work here on cpu .*: install a C\+\+ compiler"):
        require_compiler(cpu, "inductor", "default")


def test_what_a_step_warns_of_is_shown_once() -> None:
    """By Python's own rule, which is for tests another."""
    model, x = Nervous(), torch.randn(2)
    forward = CompiledForward(model, "eager", say=lambda text: None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        kept = list(warnings.filters)
        for _ in range(3):
            forward(x)
            warnings.warn("shown", UserWarning, stacklevel=1)
        assert list(warnings.filters) == kept
    assert [str(warning.message) for warning in seen] == ["shown"]
