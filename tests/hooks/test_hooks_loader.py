from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from usdcore.errors import UsdcoreError
from usdcore.hooks import Candidate, Register, build_registry, hookimpl, registry, using
from usdcore.recipe import PluginConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Options(PluginConfig):
    """Options of a test."""

    size: int = 1


def plugin(name: str, *strategies: str) -> object:
    @hookimpl
    def usdcore_register(register: Register) -> None:
        for strategy in strategies:
            register.strategy(
                name=strategy, config=Options, implementation="collections:OrderedDict", summary=f"of {name}"
            )

    return SimpleNamespace(__name__=name, usdcore_register=usdcore_register)


def raising(error: BaseException) -> Callable[[], object]:
    def load() -> object:
        raise error

    return load


def test_a_healthy_plugin_is_recorded_with_what_it_registered() -> None:
    plugins = build_registry(plugin("mine", "b", "a"))
    (record,) = plugins.records()
    assert (record.name, record.distribution, record.state, record.error) == ("mine", "local", "ok", None)
    assert [(e.kind, e.name, e.summary) for e in record.entries] == [
        ("strategy", "b", "of mine"),
        ("strategy", "a", "of mine"),
    ]
    assert plugins.names("strategy") == ("a", "b")
    assert plugins.names("split") == ()
    assert plugins.plugin("strategy", "a") is record
    assert plugins.load("strategy", "a").__name__ == "OrderedDict"


def test_config_is_a_subclass_that_accepts_its_own_name_only() -> None:
    plugins = build_registry(plugin("mine", "a", "b"))
    config = plugins.config("strategy", "a")
    assert issubclass(config, Options)
    assert config is plugins.config("strategy", "a")
    assert (config().use, config(size=2).size) == ("a", 2)
    with pytest.raises(ValueError, match="Input should be 'a'"):
        config(use="b")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'nowhere'"), "ModuleNotFoundError: No module named 'nowhere'"),
        (RuntimeError("two\n  lines"), "RuntimeError: two lines"),
        (SystemExit(3), "SystemExit: 3"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_plugin_that_raises_is_listed_and_breaks_nothing_else(error: BaseException, reason: str) -> None:
    plugins = build_registry(plugin("good", "a"), candidates=[Candidate("bad", "bad-dist", "1.2", raising(error))])
    bad, good = plugins.records()
    assert (bad.name, bad.distribution, bad.version, bad.state, bad.error) == (
        "bad",
        "bad-dist",
        "1.2",
        "failed",
        reason,
    )
    assert good.state == "ok"
    assert plugins.names("strategy") == ("a",)


def test_an_unknown_name_lists_the_nearest_and_the_failed_plugins() -> None:
    broken = Candidate("bad", "bad-dist", "1", raising(ImportError("no x")))
    plugins = build_registry(plugin("good", "prune"), candidates=[broken])
    with pytest.raises(UsdcoreError) as caught:
        plugins.load("strategy", "prun")
    assert str(caught.value) == (
        "no strategy is named 'prun'; did you mean 'prune'? (plugins that failed to load and may have had it: "
        "bad of bad-dist (ImportError: no x))"
    )


def test_the_second_plugin_with_a_name_fails_as_a_whole_and_names_both() -> None:
    plugins = build_registry(plugin("first", "a"), plugin("second", "b", "a"))
    first, second = plugins.records()
    assert first.state == "ok"
    assert second.error == (
        "strategy 'a' of second (local) is already registered by first (local); rename one or uninstall one"
    )
    assert plugins.names("strategy") == ("a",)


def test_a_misspelt_hook_is_a_failure() -> None:
    @hookimpl
    def usdcore_registre(register: Register) -> None: ...

    (record,) = build_registry(SimpleNamespace(__name__="typo", usdcore_registre=usdcore_registre)).records()
    assert record.error is not None
    assert "unknown hook 'usdcore_registre'" in record.error


def test_a_wrong_argument_is_a_failure_on_one_line() -> None:
    @hookimpl
    def usdcore_register(registry: Register) -> None: ...

    (record,) = build_registry(SimpleNamespace(__name__="wrong", usdcore_register=usdcore_register)).records()
    assert record.error is not None
    assert "registry" in record.error
    assert "\n" not in record.error


def test_a_module_without_the_hook_is_a_failure() -> None:
    (record,) = build_registry(SimpleNamespace(__name__="empty")).records()
    assert record.error == "TypeError: it has no usdcore_register marked with @hookimpl (from usdcore.hooks)"


def test_an_implementation_that_is_not_there_names_the_distribution() -> None:
    @hookimpl
    def usdcore_register(register: Register) -> None:
        register.strategy(name="gone", config=Options, implementation="nowhere.at.all:Gone", summary="s")
        register.strategy(name="less", config=Options, implementation="collections:Gone", summary="s")

    plugins = build_registry(SimpleNamespace(__name__="mine", usdcore_register=usdcore_register))
    with pytest.raises(UsdcoreError, match=r"nowhere.at.all:Gone gave ModuleNotFoundError.*reinstall local 0"):
        plugins.load("strategy", "gone")
    with pytest.raises(UsdcoreError, match=r"collections:Gone gave AttributeError"):
        plugins.load("strategy", "less")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'split'"):
        build_registry().names("splits")  # type: ignore[arg-type]


def test_using_replaces_the_registry_inside_the_block_only() -> None:
    before = registry()
    with using(build_registry()) as empty:
        assert registry() is empty
    assert registry() is before


def in_new_process(tmp_path: Path, code: str, **environment: str) -> str:
    """Runs `code` with two outside distributions installed: one imports torch when registering, one does not."""
    (tmp_path / "torch.py").write_text("")  # stands in front of the real one, which takes seconds
    for name, first in (("heavy", "import torch"), ("light", "")):
        (tmp_path / f"{name}.py").write_text(
            f"{first}\nfrom usdcore.hooks import hookimpl\nfrom usdcore.recipe import PluginConfig\n"
            "class C(PluginConfig):\n    pass\n@hookimpl\ndef usdcore_register(register):\n"
            f"    register.split(name='{name}', config=C, implementation='{name}:C', summary='s')\n"
        )
        info = tmp_path / f"Out_side.{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Out_side.{name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[usdcore]\n{name} = {name}\n")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", path + code], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    return done.stdout


LIST = """
from usdcore.hooks import registry
for r in registry().records():
    if r.distribution != "usdcore": print(r.name, r.distribution, r.version, r.state, r.error)
print(any(r.distribution == "usdcore" for r in registry().records()))
"""


def test_a_plugin_that_imports_torch_to_register_has_failed(tmp_path: Path) -> None:
    lines = in_new_process(tmp_path, LIST).splitlines()
    assert lines == [
        "heavy Out_side.heavy 1.5 failed importing it imports torch, which every listing would then wait for; import "
        "torch in the implementation's module only, and register that as a 'package.module:Class' string",
        "light Out_side.light 1.5 ok None",
        "True",
    ]


def test_where_torch_is_there_already_nothing_can_be_said(tmp_path: Path) -> None:
    lines = in_new_process(tmp_path, "import torch\n" + LIST).splitlines()
    assert lines[0] == "heavy Out_side.heavy 1.5 ok None"


def test_the_environment_chooses_distributions_by_their_normal_names(tmp_path: Path) -> None:
    lines = in_new_process(tmp_path, LIST, USDCORE_PLUGINS=" out-side-light ,nowhere").splitlines()
    assert lines == [
        "light Out_side.light 1.5 ok None",
        "nowhere nowhere  failed USDCORE_PLUGINS names it, but no distribution of that name with plugins is installed",
        "True",
    ]


def test_an_empty_environment_variable_means_the_own_plugins_only(tmp_path: Path) -> None:
    code = LIST + "print(registry().unknown('split', 'light').rpartition(' (')[2])"
    assert in_new_process(tmp_path, code, USDCORE_PLUGINS="").splitlines() == [
        "True",
        "left out by USDCORE_PLUGINS: Out_side.heavy, Out_side.light)",
    ]
