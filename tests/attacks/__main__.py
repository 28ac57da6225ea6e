"""Write docs/safety.md: `python -m tests.attacks`."""

from __future__ import annotations

from .page import PATH, text

if __name__ == "__main__":
    PATH.write_text(text())
