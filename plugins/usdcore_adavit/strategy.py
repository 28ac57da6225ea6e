"""`adavit`: which tokens, heads and layers each image uses (AdaViT, Meng et al., CVPR 2022)."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from usdcore.costs import Tree
from usdcore.errors import UsdcoreError
from usdcore.owngroups import extended
from usdcore.plans import Attach
from usdcore.strategy import Attachment, Decision, ParameterGroup, StepContext, Strategy
from usdcore_adavit.gate import Policy, PolicyGate
from usdcore_adavit.heads import head_groups
from usdcore_adavit.policy import edge_of, mean_usage
from usdcore_adavit.targets import Targets, solved

if TYPE_CHECKING:
    from torch import Tensor

    from usdcore.units.types import BlockUnit
    from usdcore_adavit.config import AdaViTConfig


class AdaViT(Strategy):
    """One gate per block; usage losses pull the mean usage of heads, layers and tokens to their targets."""

    #: Not "heads": a gate is made for those that are there.
    composes = frozenset({"branch"})

    def __init__(self, config: AdaViTConfig) -> None:
        super().__init__(config)
        self._targets: Targets | None = None

    def attach(self, site: Attachment) -> None:
        """Gates of an earlier phase go on as they are; else every block gets one.

        Errors: a budget whose scope is not "sample"; nothing that could be decided about; targets to be solved for a
        budget that decisions per image can't change.
        """
        self._require_budget(site)
        self._anneals = not self.gates
        if not self.gates:
            for number, block in enumerate(_encoder(site)):
                policy = self._policy(block, site, whole=number < self.config.keep_layers)
                if policy.decides:
                    site.gate(block.name, PolicyGate(block.name, policy, self.config.init_logit))
        if not self.gates:
            kinds = "heads, layers and tokens"
            msg = f"adavit: no block of this model has anything to decide about, by what {kinds} and keep_layers allow"
            raise UsdcoreError(msg)
        for gate in self.policy_gates:
            gate.is_learning, gate.tau = True, self.config.tau
        weights = [parameter for gate in self.policy_gates for parameter in gate.parameters()]
        site.param_group(ParameterGroup(weights, lr=self.config.lr))
        self._site, self._targets = site, None

    @property
    def policy_gates(self) -> list[PolicyGate]:
        """The gates now on the model."""
        return [gate for gate in self.gates.values() if isinstance(gate, PolicyGate)]

    @property
    def targets(self) -> Targets:
        """The usage that the phase aims at, solved for the budget where it is not stated; known once it has begun."""
        if self._targets is None:
            site = self._site
            units = extended(site.units, site.gating.groups(site.model, site.units))
            tree = Tree(units, "macs", site.gating.prices)
            self._targets = solved(tree, self.policy_gates, self._stated, site.budget.target * site.dense_total)
        return self._targets

    @property
    def _stated(self) -> Targets:
        own = (self.config.head_target, self.config.layer_target, self.config.token_target)
        return Targets(*(self.config.target if target is None else target for target in own))

    def begin_step(self, ctx: StepContext) -> None:
        """The noise falls over the phase that makes the gates; later ones keep its last value."""
        start, end = self.config.noise
        for gate in self.policy_gates:
            gate.noise = start + (end - start) * min(1.0, ctx.progress) if self._anneals else end

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        """Of heads and layers |mean usage - target|, of tokens (mean usage - target)^2, each with its weight."""
        usage, terms = self.usage(ctx), {}
        for kind, power in (("heads", 1), ("layers", 1), ("tokens", 2)):
            if kind in usage:
                weight = getattr(self.config, f"{kind.removesuffix('s')}_weight")
                terms[f"{kind}_usage"] = weight * (usage[kind] - getattr(self.targets, kind)).abs() ** power
        return terms

    def usage(self, ctx: StepContext) -> dict[str, Tensor]:
        """Mean usage in this step, differentiable, over the images of all processes and the blocks that decide.

        That of heads leaves out the blocks that an image passes by as a whole.
        """
        drawn = [gate.drawn for gate in self.policy_gates if gate.drawn is not None]
        heads = [(own.heads, own.alive) for own in drawn if own.heads is not None]
        layers = [layer for own in drawn if own.layers is not None for layer in own.layers.unbind(1)]
        tokens = [own.tokens for own in drawn if own.tokens is not None]
        found = {}
        if heads:
            found["heads"] = mean_usage([share for share, _ in heads], [alive for _, alive in heads], ctx.mean)
        if layers:
            found["layers"] = mean_usage(layers, mean=ctx.mean)
        if tokens:
            found["tokens"] = mean_usage(tokens, mean=ctx.mean)
        return found

    def decide(self) -> Decision:
        """Nothing static. Where targets were solved for the budget, they are said."""
        if self._stated.is_stated:
            return Decision()
        kinds = [kind for kind in ("heads", "layers", "tokens") if self._uses(kind)]
        aims = ", ".join(f"{getattr(self.targets, kind):.3f} of {kind}" for kind in kinds)
        return Decision(note=f"adavit aimed at the mean usage that follows from the budget: {aims}")

    def records(self, gone: set[str], rates: dict[str, float], settle: bool) -> list[Attach]:
        """A gate stays for what is left; when settling, it decides no more about a branch that is always on."""
        settled = {name for name, rate in rates.items() if rate == 1.0} if settle else set()
        records = []
        for block, gate in self.gates.items():
            assert isinstance(gate, PolicyGate)
            left = gate.policy.without(gone, settled)
            if left is not None:
                config = left.model_copy(update={"threshold": gate.threshold}).model_dump(mode="json")
                record = Attach(
                    site=block,
                    plugin=self.config.use,
                    distribution="usdcore",
                    version=version("usdcore"),
                    config=config,
                )
                records.append(record)
        return records

    @classmethod
    def rebuild(cls, record: Attach) -> PolicyGate:
        """The gate that an attach record states, with fresh weights. Errors: a record that is not this plugin's."""
        return PolicyGate(record.site, record.read(Policy))

    def _uses(self, kind: str) -> bool:
        return any(getattr(gate, kind) is not None for gate in self.policy_gates)

    def _require_budget(self, site: Attachment) -> None:
        if site.budget.scope != "sample":
            msg = (
                f"adavit decides for each image, and the budget's scope is {site.budget.scope}; give the recipe "
                f"budget: {{scope: sample}}"
            )
            raise UsdcoreError(msg)
        if site.budget.metric != "macs" and self.config.target is None:
            msg = (
                f"adavit saves MACs alone, so no usage follows from a budget of {site.budget.metric}; give it a "
                f"target (published: 0.5)"
            )
            raise UsdcoreError(msg)

    def _policy(self, block: BlockUnit, site: Attachment, whole: bool) -> Policy:
        """What is decided about a block; of one that runs whole, its tokens alone."""
        config = self.config
        prefix = site.prefix_tokens(block) if config.tokens or block.num_tokens is not None else 0
        layers = [branch.name for branch in block.branches if branch.reason is None]
        heads = head_groups(site, block, is_tied=config.heads == "width") if config.heads is not None else []
        return Policy(
            branches=block.units,
            layers=tuple(layers) if config.layers and not whole else (),
            heads=tuple(heads) if not whole else (),
            tokens=config.tokens and block.reason is None,
            prefix=prefix,
            patches=(block.num_tokens or prefix) - prefix,
            width=block.width,
            edge=edge_of(config.threshold, config.tau),
            token_edge=edge_of(config.token_threshold, config.tau),
        )


def _encoder(site: Attachment) -> list[BlockUnit]:
    """The blocks on the stream that the classifier reads: its class token is not in what comes before (T2T's stem)."""
    blocks = site.units.blocks
    return [block for block in blocks if (block.width, block.num_tokens) == (blocks[-1].width, blocks[-1].num_tokens)]
