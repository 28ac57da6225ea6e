"""What a strategy is: the one class a plugin author implements, and what it is handed.

A strategy is configured by its own pydantic model, attached to the units of a model, asked for loss terms at every
step and for its decision at the end of a phase. It never touches the model: it puts gates at sites.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from usdcore.errors import UsdcoreError
from usdcore.plans import gate_key, is_token_site
from usdcore.steps import rounded_sizes
from usdcore.tokens import prefix_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor, nn

    from usdcore.costs import Metric
    from usdcore.gates import Gate, Gating, Scope
    from usdcore.plans import Attach, Plan
    from usdcore.teachers import Tap, Teacher
    from usdcore.units.types import BlockUnit, Units


def unchanged(x: Tensor) -> Tensor:
    """The mean over one process."""
    return x


@dataclass(frozen=True)
class Budget:
    """The target as a share of the dense model. `static`, if given, bounds the shrunk model alone with all gates on.
    Sizes of what makes matrices narrower are multiples of `round_to` (see `usdcore.steps`); the target is then met from
    below, as near as that allows.
    """

    metric: Metric
    target: float
    batch_size: int
    scope: Scope = "batch"
    static: float | None = None
    round_to: int = 1


@dataclass
class StepContext:
    """One training step as strategies see it. Shares are of the dense model, differentiable, of this step's draws."""

    step: int = 0
    num_steps: int = 1
    epoch: int = 0
    images: Tensor | None = None  # this step's inputs [B, C, H, W], where the training loop hands them over
    lr: float | None = None  # of the model's optimizer in this step
    ids: Tensor | None = None  # each image's number in the training set [B], where it looks alike in every epoch
    output: Tensor | None = None  # logits [B, K]
    outputs: tuple[Tensor, ...] = ()  # all that the model gave: a distillation token's logits come second
    target: Tensor | None = None
    spent: Tensor | None = None  # the budget's metric, gates included
    spent_static: Tensor | None = None  # the same with every dynamic gate on
    #: The mean of a tensor over the processes of a run, to be called in all of them; alone, the tensor itself. `spent`
    #: is one already. A loss that is no mean over images (a square of one, an entropy) takes it of the means inside, so
    #: that it is the whole batch's; what decides must. The gradient is this process's own: gradients are averaged.
    mean: Callable[[Tensor], Tensor] = unchanged
    claimed: dict[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """From 0 at the first step of the phase to 1 at its end."""
        return self.step / max(self.num_steps, 1)

    def claim(self, term: str, options: object = None) -> bool:
        """True for the first strategy that asks in a step: a term that several strategies share is added once.

        Errors: two of them state different options for it.
        """
        if term not in self.claimed:
            self.claimed[term] = options
            return True
        if self.claimed[term] != options:
            msg = f"two strategies share the term {term} and state it differently: {self.claimed[term]} and {options}"
            raise UsdcoreError(msg)
        return False


@dataclass
class ParameterGroup:
    """Parameters that train beside the model's own: `lr_mult` scales the phase's learning rate, `lr` replaces it."""

    parameters: list[nn.Parameter]
    lr_mult: float = 1.0
    lr: float | None = None
    weight_decay: float = 0.0


class Attachment:
    """What a strategy is handed when a phase begins: the model (to read weights), its units, the budget, a place for
    gates.
    """

    def __init__(
        self,
        model: nn.Module,
        units: Units,
        budget: Budget,
        plan: Plan,
        gating: Gating,
        teachers: Callable[[str, Callable[[], nn.Module] | None], Teacher],
        input_shape: tuple[int, ...],
    ) -> None:
        self.model = model
        self.units = units
        self.budget = budget
        self.plan = plan
        self.gating = gating
        self.input_shape = input_shape  # of one image, [C, H, W]
        self.device = next(model.parameters()).device
        #: Nothing will be trained: weights that would have to be fetched from elsewhere may be left as they are made.
        self.is_dry = False
        #: What the dense model costs in the budget's metric.
        self.dense_total = units.macs if budget.metric == "macs" else units.params
        self.parameter_groups: list[ParameterGroup] = []
        self.endings: list[Callable[[], None]] = []
        #: How few entries may be left of each group about which a strategy decides without a gate.
        self.fewest: dict[str, int] = {}
        self.deciding: list[Strategy] = []
        self._acting: dict[str, list[Strategy]] = {}
        self._teachers = teachers
        self.current: Strategy | None = None

    def gate(self, site: str, gate: Gate) -> None:
        """Put a gate in the model; `site` names it among this strategy's gates.

        Errors: a site that another strategy uses already, unless both declare that they compose there; one that another
        gate of this strategy acts at.
        """
        assert self.current is not None
        for name, other in self.current.gates.items():
            twice = sorted(set(other.sites) & set(gate.sites)) if name != site else []
            if twice:
                msg = f"{self.current.config.use} acts twice on {twice[0]}, by its gates {name!r} and {site!r}"
                raise UsdcoreError(f"{msg}: a gate for each site is enough")
        self.claim(self.current, gate)
        self.gating.add(gate_key(self.current.config.use, site), gate.to(self.device))
        self.current.gates[site] = gate

    def claim(self, strategy: Strategy, gate: Gate) -> None:
        """Note that a strategy acts at a gate's sites; refuse it where another one does and they do not compose."""
        self._claim(strategy, gate.sites)

    def decides(self, fewest: Mapping[str, int]) -> None:
        """This strategy will say in the end what is left of these groups, without gates until then. `fewest` entries of
        each it would leave at least, so that a budget out of reach is refused now.

        Errors: as `gate`.
        """
        assert self.current is not None
        self._claim(self.current, fewest)
        allowed = rounded_sizes(self.units, fewest, self.budget.round_to)
        self.fewest |= {name: max(count, allowed.get(name, (count,))[0]) for name, count in fewest.items()}
        self.deciding.append(self.current)

    def _claim(self, strategy: Strategy, sites: Iterable[str]) -> None:
        blocks = {block.name: block.units for block in self.units.blocks}
        acted = [own for site in sites for own in blocks.get(site, (site,))]
        # Who leaves out tokens anywhere changes what all blocks after it are given.
        for name in dict.fromkeys("tokens" if is_token_site(own) else own for own in acted):
            group = self.units.group(name)
            kind = "tokens" if name == "tokens" else "branch" if group is None else group.kind
            for other in self._acting.setdefault(name, []):
                if other is not strategy and (kind not in other.composes or kind not in strategy.composes):
                    names = f"{other.config.use} and {strategy.config.use}"
                    msg = f"{names} both act on {name} and do not both declare that they compose there: name one"
                    raise UsdcoreError(msg)
            self._acting[name].append(strategy)

    def prefix_tokens(self, block: BlockUnit) -> int:
        """How many tokens at the front of a block's stream stand for no place of the image: class, distillation and
        register tokens. Errors: the model does not tell.
        """
        return prefix_tokens(self.model, block)

    def base_indices(self, group: str) -> tuple[int, ...] | None:
        """Where the entries of a group stood in the base model; None if the group is whole."""
        from usdcore.nesting import left

        own = self.units.groups.get(group)
        return left(self.plan, own) if own is not None and own.slots is not None else self.plan.keep(group)

    def teacher(self, key: str, build: Callable[[], nn.Module] | None = None) -> Teacher:
        """The frozen teacher `key`, made by `build` on first use and then shared; "dense" is the model as it entered
        the first phase that compresses, and needs no `build`. A key says everything that `build` depends on.
        """
        if self.current is not None:
            self.current.learns_from.add(key)
        return self._teachers(key, build)

    def tap(self, module: str, model: nn.Module | None = None) -> Tap:
        """Watch what a module gives, of the model itself or of a teacher's; the phase's end takes the tap off."""
        from usdcore.teachers import Tap

        tap = Tap(self.model if model is None else model, module)
        self.at_end(tap.close)
        return tap

    def at_end(self, action: Callable[[], None]) -> None:
        """Do this when the phase is over, before anything is decided: to leave the host as it was found."""
        self.endings.append(action)

    def param_group(self, group: ParameterGroup) -> None:
        """Train these parameters too, with their own learning rate and weight decay."""
        self.parameter_groups.append(group)


@dataclass(frozen=True)
class Decision:
    """What a strategy wants at the end of a phase.

    `scores`: per branch (shape []) or group (shape [n]) how much each entry is worth keeping; an entry below 0 is one
    that the strategy itself would remove, unless it is a mere `ranking`, in which 0 means nothing and the search is not
    judged by it. The budget picks the threshold. `drops` are decided already. With `within` the strategy promises that
    its own signs come that near to the budget, as a share of the dense model; where they do not, `account` says why.
    `sizes` are the numbers of entries, ascending, of which a group with scores may be left with one; the budget is then
    met from below, as near as they allow. A group with another one in its entries may have a single size.
    `static` bounds what may be left with every gate on, as a share of the dense model: branches that the budget's
    batches hardly run cost it next to nothing, and would else be kept whole.
    `note` is what a reader of the result must know that its numbers do not show.
    """

    scores: dict[str, Tensor] = field(default_factory=dict)
    drops: tuple[str, ...] = ()
    ranking: bool = False
    within: float | None = None
    account: str = ""
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    static: float | None = None
    note: str = ""


class Strategy:
    """Base class. Every method has a default that does nothing; `config` is the plugin's frozen pydantic model."""

    #: Sites at which this strategy's factors multiply with those of others. Elsewhere it must be alone.
    composes: frozenset[str] = frozenset({"branch", "heads", "hidden"})
    #: Keys of `state_dict` under which is what this process alone has seen, where a run has several; all else must be
    #: the same in every process, which is checked at the end of each phase.
    own: frozenset[str] = frozenset()

    def __init__(self, config: Any) -> None:
        self.config = config
        #: This strategy's gates now on the model, by site; the session keeps it current when the model is shrunk.
        self.gates: dict[str, Gate] = {}
        #: The keys of the session's teachers that it asked for.
        self.learns_from: set[str] = set()

    @property
    def compresses(self) -> bool:
        """Whether this strategy may remove or skip anything; one that only adds to the loss does not."""
        decides = type(self).decide is not Strategy.decide
        return decides or type(self).records is not Strategy.records

    @property
    def shrinks(self) -> bool:
        """Whether it may meet a budget: what compresses but is still counted whole (single zeros) does not."""
        return self.compresses

    def attach(self, site: Attachment) -> None:
        """A phase begins: put gates at sites. Called again in each phase that names the strategy, on the shrunk
        model.
        """

    def begin_step(self, ctx: StepContext) -> None:
        """Before the forward of a step: schedules by `ctx.progress`, so that a resumed run has them right at once."""

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        """Terms to add to the task's loss, by name."""
        return {}

    def task_weight(self) -> float:
        """What the task's own loss is multiplied by; those of all strategies multiply."""
        return 1.0

    def host_lr(self, ctx: StepContext) -> float:
        """What the learning rate of the model's own weights is multiplied by in this step (0: they are frozen); those
        of all strategies multiply.
        """
        return 1.0

    def after_backward(self, ctx: StepContext) -> None:
        """Gradients are there, the optimizer has not stepped."""

    def after_step(self, ctx: StepContext) -> None:
        """The optimizer has stepped (proximal steps, dual ascent, schedules)."""

    def decide(self) -> Decision:
        """The phase is over: what to keep."""
        return Decision()

    def records(self, gone: set[str], rates: dict[str, float], settle: bool) -> list[Attach]:
        """Attach records for the gates that stay.

        `gone` are the branches that the plan drops, `rates` the measured execution rates. With `settle` the run is at
        its end: a gate that is always on is left out too.
        """
        return []

    @classmethod
    def rebuild(cls, record: Attach) -> Gate:
        """A gate from an attach record, with fresh weights; the artifact's weights are loaded into it afterwards."""
        msg = f"{cls.__name__} attaches no gates"
        raise TypeError(msg)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the gates' own parameters: tensors, numbers, strings, lists, dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
