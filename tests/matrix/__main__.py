"""Run the full matrix and write docs/families.md: `python -m tests.matrix [MODEL ...] [--jobs N]`.

Some models: their rows are replaced. `--small` tries their small versions, for the models that have no row of the whole
one. `--page` writes the page alone. Hugging Face's models are tried where transformers
is installed.
"""

from __future__ import annotations

import argparse
import json

from .models import MODELS
from .page import PAGE, text
from .run import RESULT, line, merged, run_all

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    if not asked.page:
        chosen = [e for e in MODELS if e.is_here and (not asked.models or e.name in asked.models)]
        if asked.small:
            whole = {row["name"] for row in json.loads(RESULT.read_text())["models"] if not row.get("small")}
            chosen = [entry for entry in chosen if entry.name not in whole]
        elif not asked.models:
            RESULT.unlink(missing_ok=True)
        for row in run_all(chosen, asked.jobs, asked.small):
            print(line(row), flush=True)
            RESULT.write_text(json.dumps(merged([row], RESULT), indent=1) + "\n")
    PAGE.write_text(text(json.loads(RESULT.read_text())))
