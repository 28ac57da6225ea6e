"""What the kit tries: one registered plugin with options. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from usdcore.hooks import registry
from usdcore.hooks.reference import tag_of
from usdcore.testing.laws import NotTried

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdcore.hooks import Kind

MODELS = ("vit", "deit", "distilled", "layer_scale", "qk_norm", "swiglu")
"""The kit's models, of two blocks each: see `usdcore.testing.models`."""

BESIDE = ("usdc-static", "usdc-dynamic", "uvc", "prune", "distill")
"""The built-in strategies that a stranger's is tried beside."""

_IN_DATA = {"input_size": 32, "batch_size": 8}


@dataclass(frozen=True)
class Subject:
    """A plugin, the options it is tried with, and what with: see `usdcore.testing.conformance`."""

    name: str
    kind: Kind = "strategy"
    options: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = MODELS
    beside: tuple[str, ...] = BESIDE
    budget: Mapping[str, float] = field(default_factory=lambda: {"macs": 0.7})
    steps: int = 6
    without: Mapping[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The plugin in words."""
        options = "".join(f", {key}: {value}" for key, value in self.options.items())
        return f"{self.kind} {self.name}{options}"

    def with_options(self, **options: Any) -> Subject:
        """The same with further options: for a subclass of the tests that knows some only when they run."""
        return replace(self, options={**self.options, **options})

    def require_registered(self) -> None:
        """Raises `NotTried` where nothing of that name is registered: the law of registration says so."""
        if self.name not in registry().names(self.kind):
            raise NotTried(f"{registry().unknown(self.kind, self.name)}: see test_registers_without_torch")

    def config(self) -> Any:
        """Its options. Errors: pydantic's `ValidationError`."""
        defaults = _IN_DATA if self.kind == "data-source" else {}
        stated = {tag_of(self.kind): self.name, **defaults, **self.options}
        return registry().config(self.kind, self.name).model_validate(stated)

    def load(self) -> Any:
        """Its implementation."""
        return registry().load(self.kind, self.name)

    def strategy(self) -> Any:
        """A strategy made anew: the plugin itself, or `usdc-dynamic` with the gate network or split in it."""
        if self.kind == "strategy":
            return self.load()(self.config())
        if self.kind == "gate-network":
            return made("usdc-dynamic", gate_network=self.config(), init_logit=0.5)
        return made("usdc-dynamic", gate_network="G1", split=self.config(), init_logit=0.5)


def made(name: str, **options: Any) -> Any:
    """A registered strategy with these options."""
    config = registry().config("strategy", name).model_validate({"use": name, **options})
    return registry().load("strategy", name)(config)
