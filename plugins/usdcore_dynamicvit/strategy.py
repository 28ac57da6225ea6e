"""`dynamicvit`: predictors drop tokens for good at a few places (Rao et al., DynamicViT, 2021)."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from usdcore.check import outputs
from usdcore.errors import UsdcoreError
from usdcore.plans import Attach
from usdcore.strategy import ParameterGroup, Strategy
from usdcore_dynamicvit.counts import by_budget, by_ratio, find_stream
from usdcore_dynamicvit.gate import PlaceGate, Sizes
from usdcore_dynamicvit.losses import kl_loss, ratio_loss, token_loss

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.strategy import Attachment, StepContext
    from usdcore.teachers import Tap, Teacher
    from usdcore_dynamicvit.predictor import Predictor


class PlaceRecord(BaseModel):
    """What an attach record of this plugin holds: enough to build the gate anew."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blocks: tuple[str, ...] = Field(min_length=1, max_length=1000)
    before: str | None = Field(default=None, max_length=300)
    width: int = Field(ge=1, le=100_000)
    prefix: int = Field(ge=0, le=64)
    read: int = Field(ge=1, le=1_000_000)
    count: int = Field(ge=1, le=1_000_000)
    ratio: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _makes_sense(self) -> PlaceRecord:
        if self.count > self.read or len(set(self.blocks)) < len(self.blocks) or self.before in self.blocks:
            msg = "a place keeps at most the tokens that it reads, in blocks of its own"
            raise ValueError(msg)
        return self


class DynamicVit(Strategy):
    """A gate at each place, and the losses that teach the predictors how many tokens to keep, and which."""

    def attach(self, site: Attachment) -> None:
        """Gates of an earlier phase go on as they are; else predictors are made, and how many tokens each place keeps
        is settled. Errors: a model whose stream is no sequence of tokens, places that it does not have.
        """
        self.is_new = not self.gates
        if self.is_new:
            self._place(site)
        self.gating, self.model = site.gating, site.model
        self._branches = {block.name: set(block.units) for block in site.units.blocks}
        for gate in self.place_gates:
            gate.is_learning, gate.tau = True, self.config.tau
            self._train(site, gate.predictor)
        site.at_end(self._stop_learning)
        self._teacher = site.teacher("dense") if self.config.kl_weight or self.config.token_weight else None
        self._taps = (
            self._watch(site, self._teacher) if self._teacher is not None and self.config.token_weight else None
        )

    @property
    def place_gates(self) -> list[PlaceGate]:
        """The gates now on the model, from the first place to the last."""
        return [gate for gate in self.gates.values() if isinstance(gate, PlaceGate)]

    def host_lr(self, ctx: StepContext) -> float:
        """The predictors learn alone at first, then beside a model that moves slowly."""
        return 0.0 if self.is_new and ctx.epoch < self.config.frozen_epochs else float(self.config.host_lr)

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        """The ratio's term, the logits' and the tokens', each with its weight."""
        config, gates = self.config, self.place_gates
        if not gates:
            return {}
        kept = [self._kept(gate) for gate in gates]
        terms = {"ratio": config.ratio_weight * ratio_loss(kept, [gate.ratio for gate in gates])}
        if self._teacher is not None:
            assert ctx.output is not None
            terms["kl"] = config.kl_weight * kl_loss(ctx.output, self._teacher.logits(ctx))
        if self._taps is not None:
            student, teacher = (_seen(tap)[:, gates[-1].prefix :] for tap in self._taps)
            terms["tokens"] = config.token_weight * token_loss(student, teacher, kept[-1], ctx.mean)
        return {f"{config.use}_{name}": term for name, term in terms.items()}

    def after_backward(self, ctx: StepContext) -> None:
        """What stays as it is gets no gradient, so that the optimizer passes it by."""
        for name, parameter in self.model.named_parameters():
            if name in self.config.fixed:
                parameter.grad = None

    def records(self, gone: set[str], rates: dict[str, float], settle: bool) -> list[Attach]:
        """Every place stays at which a block is left; its predictor reads the stream that enters the first of them."""
        self._branches = {name: left - gone for name, left in self._branches.items()}
        records, before = [], None
        for site, gate in self.gates.items():
            assert isinstance(gate, PlaceGate)
            blocks = tuple(name for name in gate.blocks if self._branches.get(name))
            if blocks:
                records.append(self._record(site, gate, blocks, before))
                before = blocks[0]
        return records

    @classmethod
    def rebuild(cls, record: Attach) -> PlaceGate:
        """The gate that an attach record states, with fresh weights. Errors: a record that is not this plugin's."""
        stated = record.read(PlaceRecord)
        sizes = Sizes(stated.width, stated.prefix, stated.read, stated.count)
        return PlaceGate(stated.blocks, stated.before, sizes, stated.ratio)

    def _place(self, site: Attachment) -> None:
        """Make the gates."""
        stream = find_stream(site, self.config.places)
        ratio, places = self.config.keep_ratio, len(stream.spans)
        if ratio is None:
            counts = by_budget(site, stream)
            ratios = [count / stream.patches for count in counts]
        else:
            counts = by_ratio(stream.patches, ratio, places)
            ratios = [ratio**place for place in range(1, places + 1)]
        before, read = None, stream.patches
        for span, count, share in zip(stream.spans, counts, ratios, strict=True):
            sizes = Sizes(stream.width, stream.prefix, read, count)
            site.gate(span[0].name, PlaceGate([block.name for block in span], before, sizes, share))
            before, read = span[0].name, count

    def _train(self, site: Attachment, predictor: Predictor) -> None:
        """Matrices are decayed, norms and biases are not."""
        for is_matrix in (True, False):
            own = [p for p in predictor.parameters() if (p.ndim > 1) is is_matrix]
            decay = self.config.weight_decay if is_matrix else 0.0
            site.param_group(ParameterGroup(own, lr=self.config.lr, weight_decay=decay))

    def _watch(self, site: Attachment, teacher: Teacher) -> tuple[Tap, Tap]:
        """The final tokens of the model and of its teacher. Errors: they are not the tokens that gates decide about."""
        last = self.place_gates[-1]
        name = self.config.final or ("norm" if hasattr(site.model, "norm") else last.blocks[-1])
        taps, shapes = (site.tap(name), site.tap(name, teacher.model)), []
        for tap, model in zip(taps, (site.model, teacher.model), strict=True):
            outputs(model, site.input_shape)
            shapes.append(tuple(_seen(tap).shape[1:]))
        stream = site.units.blocks[-1]
        if shapes != [(stream.num_tokens, stream.width)] * 2:
            msg = (
                f"dynamicvit.final: {name} gives {list(shapes[0])} per image, in the teacher {list(shapes[1])}, and "
                f"the last block's tokens are {[stream.num_tokens, stream.width]}: name a module that gives these in "
                f"both, or set token_weight: 0"
            )
            raise UsdcoreError(msg)
        return taps

    def _kept(self, gate: PlaceGate) -> Tensor:
        """What the step drew at a place [B, M]."""
        drawn = self.gating.state.draws.get(gate.sites[0])
        if not drawn:
            msg = f"dynamicvit: the model did not come by {gate.tap} in this step; call session.model before the losses"
            raise UsdcoreError(msg)
        return drawn[0].keep[:, gate.prefix :]

    def _stop_learning(self) -> None:
        for gate in self.place_gates:
            gate.is_learning = False

    def _record(self, site: str, gate: PlaceGate, blocks: tuple[str, ...], before: str | None) -> Attach:
        record = PlaceRecord(blocks=blocks, before=before, ratio=gate.ratio, **asdict(gate.sizes))
        return Attach(
            site=site,
            plugin=self.config.use,
            distribution="usdcore",
            version=version("usdcore"),
            config=record.model_dump(mode="json"),
        )


def _seen(tap: Tap) -> Tensor:
    """What a watched module gave. Errors: it was not run."""
    if tap.value is None:
        msg = f"dynamicvit.final: {tap.module} was not run, so it gives no tokens; name another module"
        raise UsdcoreError(msg)
    return tap.value
