"""Laws as pytest tests, and without pytest as a list of outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from usdcore.errors import UsdcoreError, nearest
from usdcore.testing.laws import LAWS, Broken, Law, NotTried
from usdcore.testing.subject import BESIDE, MODELS, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usdcore.hooks import Kind


def conformance(
    name: str,
    *,
    kind: Kind = "strategy",
    options: Mapping[str, Any] | None = None,
    models: Sequence[str] = MODELS,
    beside: Sequence[str] = BESIDE,
    budget: Mapping[str, float] | None = None,
    steps: int = 6,
    without: Mapping[str, str] | None = None,
) -> type:
    """A class of tests, one for each law; bind it to any name in a test module. It may be subclassed to add more.

    Args:
        name: as it is registered.
        kind: "strategy", "gate-network", "split", "data-source" or "backbone".
        options: to try it with; what is required, and what makes it act within few steps.
        models: which of the kit's models it is for: vit, deit, distilled, layer_scale, qk_norm, swiglu.
        beside: built-in strategies that it is tried together with.
        budget: as in a recipe, {"macs": 0.7} or {"params": 0.7}; for a strategy.
        steps: training steps of a phase.
        without: laws that are left out, each with the reason, which the report of the tests shows.

    Errors: `UsdcoreError` where pytest is not installed, and for a kind, model or law that does not exist.
    """
    _require_pytest()
    subject = Subject(
        name,
        kind,
        dict(options or {}),
        tuple(models),
        tuple(beside),
        dict(budget or {"macs": 0.7}),
        steps,
        dict(without or {}),
    )
    _require_known("kind of plugin", [kind], LAWS)
    _require_known("model in the kit", models, MODELS)
    if not models:
        msg = f"usdcore.testing.conformance: models is empty; name at least one of {', '.join(MODELS)}"
        raise UsdcoreError(msg)
    _require_known(f"law for a {kind}", subject.without, [law.name for law in LAWS[kind]])
    body: dict[str, Any] = {f"test_{law.name}": _test(law) for law in LAWS[kind]}
    body |= {"__test__": True, "__doc__": f"The laws for {subject.where}.", "subject": subject}
    return type(f"Conformance[{name}]", (), body | {"pytest_generate_tests": _generate})


def _require_pytest() -> None:
    try:
        import pytest  # noqa: F401
    except ImportError:
        msg = "usdcore.testing makes pytest tests, and pytest is not installed: pip install pytest"
        raise UsdcoreError(msg) from None


def _require_known(what: str, names: Sequence[str] | Mapping[str, str], known: Any) -> None:
    for name in names:
        if name not in known:
            msg = f"usdcore.testing.conformance: no {what} is named {name!r}; {nearest(name, known)}"
            raise UsdcoreError(msg)


def _test(law: Law) -> Callable[..., None]:
    def alone(self: Any) -> None:
        _tried(law, self.subject, None)

    def with_case(self: Any, case: str) -> None:
        _tried(law, self.subject, case)

    test: Any = alone if law.over == "nothing" else with_case
    test.__doc__ = law.says
    test.__name__ = f"test_{law.name}"
    test.law = law
    made: Callable[..., None] = test
    return made


def _generate(self: Any, metafunc: Any) -> None:
    """pytest's hook: a test for each model, or for each strategy to stand beside."""
    law = getattr(metafunc.function, "law", None)
    if law is not None and law.over != "nothing":
        metafunc.parametrize("case", law.cases(self.subject))


def _tried(law: Law, subject: Subject, case: str | None) -> None:
    import pytest

    try:
        law.try_on(subject, case)
    except (NotTried, Broken) as error:
        found = error
    else:
        return
    # Outside of the handler, so that the report is the message alone.
    if isinstance(found, NotTried):
        pytest.skip(str(found))
    pytest.fail(f"{subject.where}\n  law: {law.says}\n  {found}", pytrace=False)


@dataclass(frozen=True)
class Outcome:
    """How one law came out: `case` is the model or strategy it was tried with."""

    law: str
    case: str | None
    state: Literal["kept", "broken", "not tried"]
    text: str = ""


def outcomes(tests: type) -> list[Outcome]:
    """What the tests of a class made by `conformance` give, without pytest. A plugin's own errors count as broken."""
    subject: Subject = tests.subject  # type: ignore[attr-defined]
    return [_outcome(law, subject, case) for law in LAWS[subject.kind] for case in law.cases(subject)]


def _outcome(law: Law, subject: Subject, case: str | None) -> Outcome:
    try:
        law.try_on(subject, case)
    except NotTried as reason:
        return Outcome(law.name, case, "not tried", str(reason))
    except Broken as broken:
        return Outcome(law.name, case, "broken", str(broken))
    except Exception as error:  # a stranger's code may raise anything
        return Outcome(law.name, case, "broken", f"{type(error).__name__}: {error}")
    return Outcome(law.name, case, "kept")
