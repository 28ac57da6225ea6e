"""What users really do wrong: one change each to a good recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["validate", "plan", "run"]

GOOD = """\
name: my-run
model:
  name: vit_tiny_patch16_224
  num_classes: 10
  kwargs: {patch_size: 2, embed_dim: 32, depth: 2, num_heads: 2}
data: {source: digits, input_size: 8, batch_size: 32}
budget: {macs: 0.6, batch_size: 32}
seed: 0
train: {opt: adamw, lr: 1.0e-3, warmup_epochs: 1}
phases:
  - name: search
    epochs: 3
    strategies:
      - {use: usdc-static, heads: true}
      - {use: usdc-dynamic, gate_network: G5, split: recursive}
  - name: finetune
    epochs: 2
    strategies: [usdc-dynamic]
evaluate: {batch_sizes: [1, 32], dial: [0.5]}
controls: [narrow]
"""


@dataclass(frozen=True)
class Mistake:
    """`old` of the good recipe becomes `new`; `stage`: the first command that must find it, and `run` before training.

    `upstream`: the message repeats torch or timm in brackets, whose words may change.
    """

    name: str
    old: str = ""
    new: str = ""
    stage: Stage = "validate"
    overrides: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    upstream: bool = False

    @property
    def text(self) -> str:
        """The recipe with the mistake in it."""
        assert GOOD.count(self.old) == 1 or not self.old, f"{self.name}: {self.old!r} is not there once"
        return GOOD.replace(self.old, self.new) if self.old else GOOD


SECOND = "    strategies: [usdc-dynamic]\n"
DYNAMIC = "gate_network: G5, split: recursive"
SEARCH = """\
  - name: search
    epochs: 3
    strategies:
      - {use: usdc-static, heads: true}
      - {use: usdc-dynamic, gate_network: G5, split: recursive}
"""
FINETUNE = """\
  - name: finetune
    epochs: 2
    strategies: [usdc-dynamic]
"""


def _search(strategy: str, epochs: int = 3) -> str:
    """The search with another strategy; the fine-tuning's is then new there."""
    return f"  - {{name: search, epochs: {epochs}, strategies: [{strategy}]}}\n"


DATA = "data: {source: digits, input_size: 8, batch_size: 32}"

KEYS = (
    Mistake("a misspelt section", "phases:", "phase:"),
    Mistake("a misspelt key", "warmup_epochs: 1", "warmup_epoch: 1"),
    Mistake("another program's word for a key", "macs: 0.6", "flops: 0.6"),
    Mistake("a key of another section", "seed: 0\n", "seed: 0\nlr: 1.0e-3\n"),
    Mistake("an option of another strategy", "heads: true", "split: recursive"),
    Mistake("a misspelt option of a strategy", "gate_network: G5", "gate_netwrok: G5"),
    Mistake("a wrong key in a nested mapping", "split: recursive", "split: {use: average, sizes: 4}"),
    Mistake("a plugin's mapping without its name", "split: recursive", "split: {size: 4}"),
    Mistake("a list item without use", "{use: usdc-static, heads: true}", "{usdc-static: {heads: true}}"),
    Mistake("the same key twice", "seed: 0\n", "seed: 0\nname: other\n"),
    Mistake("no seed", "seed: 0\n", ""),
    Mistake("no learning rate", "lr: 1.0e-3, ", ""),
    Mistake("no budget", "budget: {macs: 0.6, batch_size: 32}\n", ""),
    Mistake("a budget without a target", "macs: 0.6, ", ""),
    Mistake("a budget with two targets", "macs: 0.6", "macs: 0.6, params: 0.6"),
    Mistake("a section without contents", "train: {opt: adamw, lr: 1.0e-3, warmup_epochs: 1}", "train:"),
)
NAMES = (
    Mistake("a misspelt strategy", "use: usdc-static", "use: usdc_static"),
    Mistake("a misspelt gate network", "gate_network: G5", "gate_network: G55"),
    Mistake("a gate network as a strategy", "{use: usdc-static, heads: true}", "G5"),
    Mistake("a misspelt split", "split: recursive", "split: recursiv"),
    Mistake("a misspelt data source", "source: digits", "source: digit"),
    Mistake("a misspelt control", "[narrow]", "[narow]"),
    Mistake("a misspelt device", "seed: 0\n", "seed: 0\ndevice: cuda:0\n"),
    Mistake("a misspelt scope", "macs: 0.6", "macs: 0.6, scope: batches"),
    Mistake("a misspelt schedule", "opt: adamw", "sched: cosin"),
    Mistake("an unknown augmentation", "batch_size: 32}\nbudget", "batch_size: 32, augment: deit}\nbudget"),
    Mistake("a name that can't name a folder", "name: my-run", "name: my run"),
)
NUMBERS = (
    Mistake("a budget of 60 instead of 0.6", "macs: 0.6", "macs: 60"),
    Mistake("a budget as a percentage", "macs: 0.6", "macs: 60%"),
    Mistake("a budget of nothing", "macs: 0.6", "macs: 0"),
    Mistake("a ratio above 1", "heads: true", "target: 1.5"),
    Mistake("a dial outside 0 to 1", "dial: [0.5]", "dial: [0.5, 1.5]"),
    Mistake("a quoted number", "lr: 1.0e-3", 'lr: "1e-3"'),
    Mistake("a decimal comma", "lr: 1.0e-3", "lr: '0,001'"),
    Mistake("a learning rate of 0", "lr: 1.0e-3", "lr: 0"),
    Mistake("a number that is none", "lr: 1.0e-3", "lr: .nan"),
    Mistake("yes for true", "heads: true", "heads: yes"),
    Mistake("off for false", "heads: true", "heads: off"),
    Mistake("1 for true", "heads: true", "heads: 1"),
    Mistake("epochs as a float", "epochs: 3", "epochs: 3.0"),
    Mistake("epochs below 0", "epochs: 3", "epochs: -3"),
    Mistake("a seed below 0", "seed: 0", "seed: -1"),
    Mistake("a batch of 0 images", "batch_size: 32}\nbudget", "batch_size: 0}\nbudget"),
    Mistake("a 0 in a list of batch sizes", "batch_sizes: [1, 32]", "batch_sizes: [1, 0]"),
    Mistake("absurdly many", "epochs: 3", "epochs: 1e30"),
)
SHAPES = (
    Mistake("a list where a mapping is meant", "train: {opt: adamw, lr: 1.0e-3, warmup_epochs: 1}", "train: [1.0e-3]"),
    Mistake("a name where a mapping is meant", DATA, "data: digits"),
    Mistake("a mapping where a list is meant", SECOND, "    strategies: {use: usdc-dynamic}\n"),
    Mistake("a value where a list is meant", "dial: [0.5]", "dial: 0.5"),
    Mistake("a tab", "    epochs: 3", "\tepochs: 3"),
    Mistake("a wrong indentation", "  - name: finetune\n    epochs", "  - name: finetune\n   epochs"),
    Mistake("a bracket that is not closed", "[narrow]", "[narrow"),
    Mistake("no space after a colon", "seed: 0", "seed:0"),
    Mistake("a tag", "seed: 0", "seed: !!int 0"),
    Mistake("a merge key", "seed: 0", "seed: 0\n<<: {seed: 1}"),
    Mistake("an alias without its anchor", "seed: 0", "seed: *seed"),
    Mistake("two documents", "seed: 0\n", "seed: 0\n---\n"),
    Mistake("an empty file", GOOD, ""),
    Mistake("several at once", "seed: 0\n", "seed: x\ndevice: gpu\nthread: 2\n"),
)
TOGETHER = (
    Mistake("a warm-up longer than its phase", "warmup_epochs: 1", "warmup_epochs: 3"),
    Mistake("a schedule that rises", "opt: adamw", "min_lr: 0.1"),
    Mistake("a group larger than the batch", "split: recursive", "split: {use: average, size: 64}"),
    Mistake("num_classes not the data's", "num_classes: 10", "num_classes: 1000"),
    Mistake("the fine-tuning before the search", SEARCH + FINETUNE, FINETUNE + SEARCH),
    Mistake(
        "a search without strategies",
        f"strategies:\n      - {{use: usdc-static, heads: true}}\n      - {{use: usdc-dynamic, {DYNAMIC}}}",
        "strategies: []",
    ),
    Mistake("no strategy at all", SEARCH + FINETUNE, "  - {name: train, epochs: 3}\n"),
    Mistake("two phases of one name", "name: finetune", "name: search"),
    Mistake("a strategy twice in a phase", SECOND, "    strategies: [usdc-dynamic, usdc-dynamic]\n"),
    Mistake(
        "another value for an option that can't change",
        SECOND,
        "    strategies: [{use: usdc-dynamic, gate_network: G1}]\n",
    ),
    Mistake("nothing left to prune", "heads: true", "heads: false, hidden: false, branches: false"),
    Mistake("a search of 0 epochs", "epochs: 3", "epochs: 0"),
    Mistake("a search of 0 epochs, by uvc", SEARCH, _search("uvc", epochs=0)),
    Mistake("a teacher in a phase of 0 epochs", SEARCH, _search("distill", epochs=0)),
    Mistake("a teacher by its bare name", SEARCH, _search("{use: distill, teacher: regnety_160}")),
    Mistake("a teacher of no kind", SEARCH, _search("{use: distill, teacher: {}}")),
    Mistake("a teacher that knows nothing", SEARCH, _search("{use: distill, teacher: {model: regnety_160}}")),
    Mistake("mixup of odd batches", "opt: adamw", "mixup: 0.8", overrides=("data.batch_size=33",)),
    Mistake("dials for a budget of parameters", "macs: 0.6", "params: 0.6"),
    Mistake(
        "weights and pretrained", "  num_classes: 10\n", "  num_classes: 10\n  pretrained: true\n  weights: a.pt\n"
    ),
)
FILES = (
    Mistake(
        "extends a file that is not there",
        "name: my-run\n",
        "extends: bse.yaml\nname: my-run\n",
        files={"base.yaml": "seed: 1\n"},
    ),
    Mistake("extends itself", "name: my-run\n", "extends: x.yaml\nname: my-run\n"),
    Mistake("extends a folder", "name: my-run\n", "extends: .\nname: my-run\n"),
    Mistake("--set with an unknown key", overrides=("train.learning_rate=1e-3",)),
    Mistake("--set without a value", overrides=("train.lr",)),
    Mistake("--set beyond a list's end", overrides=("phases.5.epochs=1",)),
    Mistake("--set below a value", overrides=("seed.x=1",)),
    Mistake("--set with a bad value", overrides=("budget.macs=half",)),
)
MODEL = (
    Mistake("a misspelt model", "vit_tiny_patch16_224", "vit_tiny_patch_224", stage="plan"),
    Mistake("a misspelt argument of the model", "depth: 2", "dept: 2", stage="plan"),
    Mistake("heads that do not divide the width", "num_heads: 2", "num_heads: 5", stage="plan", upstream=True),
    Mistake("a patch size that does not divide the image", "input_size: 8", "input_size: 9", stage="plan"),
    Mistake("num_classes among the model's arguments", "depth: 2", "num_classes: 10", stage="plan"),
    Mistake(
        "a model of another kind",
        GOOD[GOOD.index("  name: vit") : GOOD.index("data:")],
        "  name: resnet18\n  num_classes: 10\n",
        stage="plan",
    ),
    Mistake("a class that timm's layers lack", "depth: 2", "norm_layer: timm.layers:LayerNrm", stage="plan"),
    Mistake("a model larger than the memory", "depth: 2", "depth: 50000", stage="plan"),
    Mistake("a drop rate above 1", "depth: 2", "depth: 2, drop_path_rate: 2", stage="plan", upstream=True),
    Mistake(
        "weights that are not there",
        "  num_classes: 10\n",
        "  num_classes: 10\n  weights: mine.pt\n",
        stage="plan",
        files={"mien.pt": ""},
    ),
    Mistake(
        "weights that are none",
        "  num_classes: 10\n",
        "  num_classes: 10\n  weights: mine.pt\n",
        stage="plan",
        files={"mine.pt": "no weights\n"},
        upstream=True,
    ),
    Mistake(
        "a teacher whose weights are not there",
        SEARCH,
        _search("{use: distill, teacher: {model: regnety_160, weights: regnet.pt}}"),
        stage="plan",
    ),
    Mistake(
        "a teacher whose file is not there",
        SEARCH,
        _search("{use: distill, teacher: {file: runs/big/model.safetensors}}"),
        stage="plan",
    ),
    Mistake(
        "a misspelt teacher",
        SEARCH,
        _search("{use: distill, teacher: {model: regnety_16, pretrained: true}}"),
        stage="plan",
    ),
    Mistake(
        "a dense teacher, in a phase before there is a dense model",
        SEARCH,
        "  - {name: dense, epochs: 1, strategies: [distill]}\n" + SEARCH,
        stage="plan",
    ),
    Mistake("a misspelt optimizer", "opt: adamw", "opt: adammw", stage="plan"),
    Mistake(
        "a misspelt optimizer of a later phase",
        "    epochs: 2\n",
        "    epochs: 2\n    train: {opt: sdg}\n",
        stage="plan",
    ),
    Mistake("an optimizer that can't be used here", "opt: adamw", "opt: adahessian", stage="plan", upstream=True),
    Mistake("a budget out of reach", "{macs: 0.6, batch_size: 32}", "{macs: 0.0001, batch_size: 32}", stage="plan"),
)
DATA_FILES = (
    Mistake(
        "data that are not there",
        DATA,
        "data: {source: timm, root: nowhere, input_size: 8, batch_size: 32}",
        stage="run",
    ),
    Mistake(
        "a folder without the split",
        DATA,
        "data: {source: timm, root: images, input_size: 8, batch_size: 32}",
        stage="run",
        files={"images/training/a/1.png": "x", "images/test/a/1.png": "x"},
    ),
    Mistake(
        "num_classes not the folders'",
        DATA,
        "data: {source: timm, root: images, input_size: 8, batch_size: 32}",
        stage="run",
        files={f"images/{s}/{c}/1.png": "x" for s in ("train", "val") for c in "ab"},
    ),
    Mistake("data without their folder", DATA, "data: {source: timm, input_size: 8, batch_size: 32}"),
)

GROUPS: dict[str, tuple[Mistake, ...]] = {
    "Keys": KEYS,
    "Names": NAMES,
    "Numbers and truth": NUMBERS,
    "Shapes and YAML": SHAPES,
    "What does not go together": TOGETHER,
    "Several files and --set": FILES,
    "The model, its weights, the optimizer": MODEL,
    "The data": DATA_FILES,
}
MISTAKES = [mistake for group in GROUPS.values() for mistake in group]
