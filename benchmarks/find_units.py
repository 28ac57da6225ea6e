"""How long `find_units` takes on one CPU core, beside torch.export and torch.fx, which give a graph and no units.

python benchmarks/find_units.py [MODEL ...]
"""

from __future__ import annotations

import datetime
import json
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch

from usdcore.units import find_units

ROUNDS = 7


def contenders(model: torch.nn.Module, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is timed; all on the same model and input shape."""
    return {
        "usdcore.find_units": lambda: find_units(model, images),
        "torch.export": lambda: torch.export.export(model, (images,), strict=False),
        "torch.fx": lambda: torch.fx.symbolic_trace(model),
    }


def measure(name: str) -> dict[str, object]:
    """Median and range of interleaved rounds after one warm-up each, in seconds."""
    model = timm.create_model(name).eval()
    images = torch.zeros(2, 3, 224, 224)
    runs = contenders(model, images)
    times: dict[str, list[float]] = {label: [] for label in runs}
    for round_ in range(ROUNDS + 1):
        for label, run in runs.items():
            started = time.perf_counter()
            run()
            if round_:
                times[label].append(time.perf_counter() - started)
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    find_units(model, images)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "model": name,
        "seconds": {
            label: {"median": statistics.median(t), "min": min(t), "max": max(t)} for label, t in times.items()
        },
        "weights_bytes": weights,
        "peak_memory_growth_bytes": grown * 1024,
    }


def main() -> None:
    """Measure, print and write the result."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = sys.argv[1:] or ["deit_tiny_patch16_224", "deit_small_patch16_224", "vit_large_patch16_224"]
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": 1,
        "rounds": ROUNDS,
        "models": [measure(name) for name in names],
    }
    text = json.dumps(result, indent=1)
    print(text)
    (Path(__file__).parent / "results" / "find_units.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
