"""What heads of different widths cost on one CPU core: the dims masked, removed as usdcore does it, and otherwise.

python benchmarks/ragged_heads.py [ROUNDS]

Random dims go, another share in each head. `masked` computes all of them (weights zeroed, so the same logits);
`usdcore` has the narrow weights, and zeros inside the attention. Of values, `narrow` hands V to torch's attention as
wide as its widest head. Of queries and keys, `in place` leaves what is left where it was, as a rotary embedding or a
norm asks for, instead of moving it together; `slices` does so without an indexed copy. All run in one process,
interleaved in a random order, after a check that they agree. Times are of the thread's own processor time, which other
programs on the machine disturb less.
"""

from __future__ import annotations

import copy
import datetime
import itertools
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # large buffers are reused, for all contenders alike
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from usdcore import ragged as moves
from usdcore.plans import Keep, Plan
from usdcore.ragged import Ragged, lay_out
from usdcore.surgery import shrink

MODELS = ("deit_tiny_patch16_224", "deit_small_patch16_224")
KINDS = ("v_dims", "qk_dims")
SHARES = (0.9, 0.75, 0.5, 0.25)
BATCHES = (1, 8, 32)
TOKENS, HEAD = 197, 64


class Narrow(nn.Module):
    """Attention whose values are as wide as the widest head's."""

    def __init__(self, ragged: nn.Module, counts: np.ndarray) -> None:
        super().__init__()
        self.heads, self.width = len(counts), int(counts.max())
        self.qkv, self.proj = copy.deepcopy(ragged.qkv), copy.deepcopy(ragged.proj)
        self.full = self.heads * HEAD
        start, positions = 0, []
        for count in counts:
            positions += [*range(start, start + count), *[-1] * (self.width - count)]
            start += count
        values = tuple(p + 2 * self.full if p >= 0 else -1 for p in positions)
        lay_out(self.qkv, "made", (*range(2 * self.full), *values))
        lay_out(self.proj, "read", tuple(positions))

    def forward(self, x: Tensor, **_: object) -> Tensor:
        B, N, _ = x.shape
        y = self.qkv(x)
        q, k = y[..., : 2 * self.full].reshape(B, N, 2, self.heads, HEAD).permute(2, 0, 3, 1, 4)
        v = y[..., 2 * self.full :].reshape(B, N, self.heads, self.width).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(B, N, self.heads * self.width))


class Slices(nn.Module):
    """A projection whose gaps are filled by slices and one `torch.cat`, however many."""

    def __init__(self, ragged: Ragged) -> None:
        super().__init__()
        self.inner = copy.deepcopy(ragged)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.inner.weight, self.inner.bias)
        return torch.cat(moves._pieces(y, self.inner.gaps["made"]), -1)


def prepare(name: str, kind: str, share: float) -> tuple[dict[str, nn.Module], list[int]]:
    """The first block in each form, and how many dims each head keeps."""
    torch.manual_seed(0)
    model = timm.create_model(name, depth=1).eval().requires_grad_(False)
    num_heads = model.blocks[0].attn.num_heads
    rng = np.random.default_rng(0)
    spread = np.linspace(-1, 1, num_heads) * min(share, 1 - share) * HEAD / 2
    counts = np.clip(np.rint(share * HEAD + spread), 1, HEAD).astype(int)
    kept = [h * HEAD + i for h, c in enumerate(counts) for i in sorted(rng.permutation(HEAD)[:c].tolist())]
    plan = Plan(records=(Keep(group=f"blocks.0.attn:{kind}", indices=tuple(kept)),))
    ragged = shrink(model, plan, torch.zeros(1, 3, 224, 224)).blocks[0]
    masked, narrow = model.blocks[0], copy.deepcopy(ragged)
    gone = np.setdiff1d(np.arange(num_heads * HEAD), kept)
    if kind == "qk_dims":
        rows = np.concatenate([gone, gone + num_heads * HEAD])
        masked.attn.qkv.weight[rows], masked.attn.qkv.bias[rows] = 0, 0
        layout = np.full(3 * num_heads * HEAD, -1)
        places = np.setdiff1d(np.arange(len(layout)), rows)
        layout[places] = np.arange(len(places))
        in_place, slices = copy.deepcopy(ragged), copy.deepcopy(ragged)
        lay_out(in_place.attn.qkv, "made", tuple(layout.tolist()))
        slices.attn.qkv = Slices(in_place.attn.qkv)
        return {"masked": masked, "usdcore": ragged, "in place": in_place, "slices": slices}, counts.tolist()
    masked.attn.proj.weight[:, gone] = 0
    narrow.attn = Narrow(ragged.attn, counts)
    return {"masked": masked, "usdcore": ragged, "narrow": narrow}, counts.tolist()


def measure(blocks: dict[str, nn.Module], part: str, batch: int, rounds: int) -> dict[str, object]:
    """Median seconds of each form, and their ratio to the masked one."""
    parts = {label: block.attn if part == "attention" else block for label, block in blocks.items()}
    width = blocks["masked"].norm1.normalized_shape[0]
    x = torch.randn(batch, TOKENS, width)
    runs: dict[str, Callable[[], Tensor]] = {label: (lambda m=m: m(x)) for label, m in parts.items()}
    times: dict[str, list[float]] = {label: [] for label in runs}
    expected, order = runs["masked"](), list(runs)
    for round_ in range(rounds + 1):
        random.shuffle(order)
        for label in order:
            started = time.thread_time()
            out = runs[label]()
            elapsed = time.thread_time() - started
            if round_:
                times[label].append(elapsed)
            else:
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    seconds = {label: statistics.median(t) for label, t in times.items()}
    return {
        "part": part,
        "batch_size": batch,
        "seconds": seconds,
        "ratio_to_masked": {label: round(t / seconds["masked"], 3) for label, t in seconds.items()},
    }


def main() -> None:
    """Measure, print and write the result."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    random.seed(0)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    rows: list[dict[str, object]] = []
    for name, kind in itertools.product(MODELS, KINDS):
        for share in SHARES:
            blocks, counts = prepare(name, kind, share)
            for part in ("attention", "block"):
                for batch in BATCHES:
                    # a batch of 1 takes a few milliseconds: more rounds
                    row = measure(blocks, part, batch, rounds * max(1, 8 // batch))
                    rows.append({"model": name, "dims": kind, "kept": share, "dims_of_heads": counts, **row})
                    print(name, kind, share, part, batch, row["ratio_to_masked"], flush=True)
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "clock": "time.thread_time",
        "dtype": "float32",
        "rounds": rounds,
        "load_average": os.getloadavg(),
        "malloc": {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")},
        "rows": rows,
    }
    (Path(__file__).parent / "results" / "ragged_heads.json").write_text(json.dumps(result, indent=1) + "\n")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
