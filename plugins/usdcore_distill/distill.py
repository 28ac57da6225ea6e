"""`distill`: the student learns from a frozen teacher beside the labels (Hinton et al., 2015; DeiT; UVC)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from usdcore.errors import UsdcoreError
from usdcore.strategy import Strategy
from usdcore_distill.cache import LogitCache
from usdcore_distill.features import FeatureMatch
from usdcore_distill.losses import hard, soft
from usdcore_distill.teacher import find_teacher, stated_base

if TYPE_CHECKING:
    from usdcore.strategy import Attachment, StepContext
    from usdcore_distill.config import DistillConfig


class Distill(Strategy):
    """Adds alpha times the distillation losses, and leaves 1 - alpha for the task's."""

    own = frozenset({"cache"})  # each process keeps the logits of the images that it was given

    def __init__(self, config: DistillConfig) -> None:
        super().__init__(config)
        if not isinstance(config.teacher, str):
            stated_base(config.teacher)  # so that a run with a name or a file that is not there does not begin
        self._cache = LogitCache()
        self._features = FeatureMatch()

    def attach(self, site: Attachment) -> None:
        """Find the teacher, watch the features, and turn the training of a distillation token on until the phase
        ends. Errors: a teacher that does not fit, a token or modules that are not there.
        """
        has_token = _has_token(site.model)
        if self.config.token == "distillation" and not has_token:
            msg = (
                f"distill.token: {type(site.model).__name__} has no distillation token: use token: auto, or a model "
                f"that has one, such as deit_tiny_distilled_patch16_224"
            )
            raise UsdcoreError(msg)
        self._through_token = has_token and self.config.token != "class"
        self._teacher = find_teacher(site, self.config.teacher, needs_logits=self.config.kind != "features")
        if self.config.matching is not None:
            self._features.attach(site, self._teacher.model, self.config.matching)
        if self._through_token:
            _train_token(site)

    def losses(self, ctx: StepContext) -> dict[str, Tensor]:
        """The logits' term, under this strategy's name, and the features' term."""
        config, terms = self.config, {}
        if config.kind != "features":
            student, teacher = self._student_logits(ctx), self._teacher_logits(ctx)
            by_logits = hard(student, teacher) if config.kind == "hard" else self._soft(student, teacher)
            terms[config.use] = config.alpha * by_logits
        if config.matching is not None:
            self._teacher.logits(ctx)  # its forward, in which the features are seen
            terms[f"{config.use}_features"] = config.alpha * config.matching.weight * self._features.loss()
        return terms

    def task_weight(self) -> float:
        """1 - alpha."""
        return float(1.0 - self.config.alpha)

    def state_dict(self) -> dict[str, Any]:
        """What was learned and gathered; the teacher itself is made anew."""
        return {"cache": self._cache.state_dict(), "projections": self._features.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, before or after `attach`."""
        self._cache.load_state_dict(state["cache"])
        self._features.load_state_dict(state["projections"])

    def _soft(self, student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        return soft(student_BK, teacher_BK, self.config.tau, self.config.reduction)

    def _student_logits(self, ctx: StepContext) -> Tensor:
        """Logits [B, K] of the token that learns from the teacher."""
        if not self._through_token:
            assert ctx.output is not None
            return ctx.output
        if len(ctx.outputs) < 2:
            msg = "distill.token: the model gave no logits of its distillation token; call model.train() before a step"
            raise UsdcoreError(msg)
        return ctx.outputs[1]

    def _teacher_logits(self, ctx: StepContext) -> Tensor:
        if not self.config.cache:
            return self._teacher.logits(ctx)
        if ctx.ids is None:
            msg = (
                "distill.cache: these images change from epoch to epoch (data.augment, train.mixup or train.cutmix is "
                "on), so their teacher's logits can't be kept: set cache: false, or turn these off; a training loop "
                "of your own says that they don't by session.begin_step(..., ids=...)"
            )
            raise UsdcoreError(msg)
        assert ctx.output is not None
        ids = ctx.ids.cpu()
        if len(ids) != len(ctx.output):
            msg = f"distill.cache: {len(ids)} ids for {len(ctx.output)} images; give session.begin_step one for each"
            raise UsdcoreError(msg)
        known = self._cache.get(ids, ctx.output.device)
        if known is None:
            known = self._teacher.logits(ctx)
            self._cache.put(ids, known)
        return known


def _has_token(model: nn.Module) -> bool:
    """Whether timm can train a distillation token of this model (some classes can do without)."""
    return hasattr(model, "set_distilled_training") and isinstance(getattr(model, "head_dist", None), nn.Module)


def _train_token(site: Attachment) -> None:
    model: Any = site.model
    was = bool(model.distilled_training)
    model.set_distilled_training(True)
    site.at_end(lambda: model.set_distilled_training(was))
