"""The pass matrix: which parts of which model can be removed, and whether what is left is right in all that counts.

`python -m tests.matrix` runs it on full-size models and writes docs/families.md; test_matrix.py runs the same checks on
small ones.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # zoo and counting, when it is run as a command
