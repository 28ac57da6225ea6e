"""Write down what is said about every mistake, and docs/mistakes.md from it: ``python tests/mistakes/update.py``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mistakes.catch import DOCS, GOLDEN, as_docs, as_golden, inside, prepare, said
from mistakes.table import MISTAKES


def main() -> int:
    """The number of mistakes that the stage which should find them does not."""
    texts, missed = {}, 0
    for mistake in MISTAKES:
        with tempfile.TemporaryDirectory() as folder, inside(Path(folder)):
            prepare(mistake, Path(folder))
            text = said(mistake, mistake.stage)
        if text is None:
            missed += 1
            print(f"{mistake.name}: not found by {mistake.stage}")
        texts[mistake.name] = text or "not found"
    GOLDEN.write_text(as_golden(texts))
    DOCS.write_text(as_docs(texts))
    print(f"{len(MISTAKES)} mistakes, {missed} not found")
    return missed


if __name__ == "__main__":
    sys.exit(main() > 0)
