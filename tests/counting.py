"""What torch's FLOP counter says of a forward: the kit's, which plugin authors have too."""

from __future__ import annotations

from usdcore.counting import counted_macs

__all__ = ["counted_macs"]
