"""The conformance kit: one line in a plugin's tests gives one pytest test for each law that a plugin has to keep.

::

    from usdcore.testing import conformance

    TestMine = conformance("mine", options={"power": 1.0})

A law that does not hold fails with what was wrong, where, and what to do. The tests need pytest and no data; they run
on small models of their own. Importing this module imports no torch.
"""

from __future__ import annotations

from usdcore.testing.kit import Outcome, conformance, outcomes
from usdcore.testing.laws import Broken, NotTried

__all__ = ["Broken", "NotTried", "Outcome", "conformance", "outcomes"]
