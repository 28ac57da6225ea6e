"""The machine that numbers are measured on: in words, for a result, and its allocator. Imports no torch by itself."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: glibc's numbers for `mallopt`, and the size (bytes) up to which buffers are then kept and used again.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _KEPT = -1, -3, 2**30


def device_words(device: torch.device) -> str:
    """The name of an accelerator, or of the processor."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def conditions(device: torch.device) -> dict[str, Any]:
    """What must stand beside a measured time: the machine, its load, versions, the date (UTC), the allocator."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": device_words(device),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("usdcore", "torch", "timm")},
        },
        "allocator": keep_buffers(),
    }


@cache
def keep_buffers() -> str:
    """Let this process keep large buffers that are freed, and use them again. Returns what was done, in words.

    glibc gives every buffer above a threshold (at most 32 MiB by itself) back to the system at once and then faults
    every page of the next one in again. A dense model's hidden layer may lie above that threshold and a pruned one's
    below it, so that pruning looks faster than it is: a comparison needs one rule for both. Elsewhere (another C
    library, or `MALLOC_MMAP_THRESHOLD_` set by the user) nothing is done.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return f"MALLOC_MMAP_THRESHOLD_={os.environ['MALLOC_MMAP_THRESHOLD_']}"
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return "the system's own"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(_MMAP_THRESHOLD, _KEPT) and mallopt(_TRIM_THRESHOLD, 2**31 - 1)):
        return "the system's own"
    return f"glibc, buffers up to {_KEPT >> 20} MiB are kept"
