"""The teacher's logits by image number, for images that look the same in every epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from usdcore.devices import sent
from usdcore.errors import UsdcoreError

#: Bytes that the table may take.
LIMIT = 2**30


class LogitCache:
    """A table [M, K] on the device of the logits, grown to the largest number seen.

    Which rows are filled is known on the CPU, as the numbers are: asking never waits for the device.
    """

    def __init__(self) -> None:
        self._table: Tensor | None = None
        self._filled = torch.zeros(0, dtype=torch.bool)

    def get(self, ids: Tensor, device: torch.device) -> Tensor | None:
        """The logits [B, K] of the images `ids` [B] (on the CPU); None unless all of them are known."""
        if self._table is None or int(ids.max()) >= len(self._filled) or not bool(self._filled[ids].all()):
            return None
        self._table = self._table.to(device)
        return self._table[sent(ids, device)]

    def put(self, ids: Tensor, logits_BK: Tensor) -> None:
        """Keep logits, in the precision of the first ones. Errors: the table would take more than `LIMIT` bytes."""
        logits_BK = logits_BK.detach()
        self._grow(int(ids.max()) + 1, logits_BK)
        assert self._table is not None
        self._table[sent(ids, logits_BK.device)] = logits_BK.to(self._table.dtype)
        self._filled[ids] = True

    def state_dict(self) -> dict[str, Any]:
        """The table. A run that goes on can't compute it anew: in other batches, a logit's last bits may differ."""
        return {} if self._table is None else {"table": self._table, "filled": self._filled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._table = state["table"].clone() if state else None
        self._filled = state["filled"].clone() if state else torch.zeros(0, dtype=torch.bool)

    def _grow(self, rows: int, like_BK: Tensor) -> None:
        old, device = self._table, like_BK.device
        if old is not None and rows <= len(old):
            self._table = old.to(device)
            return
        num_bytes = rows * like_BK.shape[1] * (like_BK if old is None else old).element_size()
        if num_bytes > LIMIT:
            msg = (
                f"distill.cache: logits of {like_BK.shape[1]} classes for {rows} images and more take over "
                f"{LIMIT / 2**30:g} GiB ({num_bytes / 2**30:.1f}); set cache: false"
            )
            raise UsdcoreError(msg)
        table = (like_BK if old is None else old.to(device)).new_zeros(rows, like_BK.shape[1])
        filled = torch.zeros(rows, dtype=torch.bool)
        if old is not None:
            table[: len(old)] = old.to(device)
            filled[: len(old)] = self._filled
        self._table, self._filled = table, filled
