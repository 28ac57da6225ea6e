"""Short messages among the processes of a run, through the key-value store that their launcher keeps.

It serves what is rare (plans, evaluations, what the first process alone does, how a process ended); what every step
needs goes through collectives. Values are JSON, so nothing that is received can run code.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from usdcore.errors import UsdcoreError, brief

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds between two signs of life, which a thread gives; how long one may be waited for, and by whoever already knows
#: that something is wrong. A launcher gives 30 seconds to those that it ends.
BEAT, PATIENCE, SUSPICION = 0.5, 10.0, 4.0
#: Seconds that the first process waits at the end for the others to read its last words: it may keep the store.
FAREWELL = 10.0
AGAIN = "Give the same command again: the run goes on from its last checkpoint"


class Store(Protocol):
    """What is used of torch's stores. Errors of each: `RuntimeError`, where the store is gone."""

    def set(self, key: str, value: str, /) -> None:
        """Write a value."""

    def get(self, key: str, /) -> bytes:
        """A value that is there."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys are there."""

    def add(self, key: str, amount: int, /) -> int:
        """Count; the number so far."""

    def delete_key(self, key: str, /) -> bool:
        """Remove a value."""


class PeerLost(UsdcoreError):
    """Another process of this run has gone, so this one can't go on. `is_mine_to_say`: no process with a lower rank is
    left that would say it.
    """

    def __init__(self, text: str, *, is_mine_to_say: bool = False) -> None:
        super().__init__(text)
        self.is_mine_to_say = is_mine_to_say


class Board:
    """What process `rank` of `world` writes for the others, and reads of theirs. All take the same turns."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.others = [other for other in range(world) if other != rank]
        self._turn, self._is_interrupted = 0, False
        self._posted: list[str] = []

    @contextmanager
    def beating(self) -> Iterator[None]:
        """While it is open, the others are told that this process lives."""
        over = threading.Event()

        def beat() -> None:
            try:
                while not over.wait(BEAT):
                    self.store.add(f"beat/{self.rank}", 1)
            except RuntimeError:  # the store is gone; the main thread will find out
                return

        thread = threading.Thread(target=beat, name="usdcore-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(5.0)

    def exchange(self, value: Any) -> list[Any]:
        """Every process's value, by rank. Errors: as `wait`."""
        self._turn += 1
        self._post(f"{self._turn}/{self.rank}", value)
        found = [self.wait(f"{self._turn}/{rank}") for rank in range(self.world)]
        # All have posted this turn, so all have read the turns before it.
        while len(self._posted) > 1:
            self.store.delete_key(self._posted.pop(0))
        return found

    def from_first(self, action: Callable[[], Any]) -> Any:
        """What `action` gives in the first process, in every one; the others wait as long as it takes. Errors: as
        `wait`.
        """
        self._turn += 1
        key = f"{self._turn}/first"
        if self.rank == 0:
            self._post(key, action())
        return self.wait(key)

    def wait(self, key: str) -> Any:
        """The value of a key, once it is there, however long that takes. Errors: those of `lost`, where a process has
        ended meanwhile or gives no sign of life.
        """
        pause, signs = 0.002, Signs(self)
        try:
            while not self.store.check([key]):
                if self.store.add("ended", 0) or (pause >= 0.25 and signs.oldest() > PATIENCE):
                    raise self.lost("it ended")
                time.sleep(pause)
                pause = min(0.25, 1.5 * pause)
            return json.loads(self.store.get(key))
        except RuntimeError as error:
            raise self.lost(str(error)) from None
        except KeyboardInterrupt:  # a launcher also ends all when one of them was killed
            self.interrupt()
            raise self.lost("interrupted") from None

    def note(self, kind: str, text: str = "") -> None:
        """How this process ends: "interrupted", or "error" and its words."""
        try:
            self.store.set(f"end/{self.rank}", json.dumps([kind, text]))
            self.store.add("ended", 1)
        except RuntimeError:  # the store has gone with the process that kept it, and so has who would read this
            return

    def interrupt(self) -> None:
        """A signal has come."""
        if not self._is_interrupted:
            self._is_interrupted = True
            self.note("interrupted")

    def leave(self) -> None:
        """The run is over: the first process leaves last."""
        try:
            left = self.store.add("left", 1)
            deadline = time.monotonic() + FAREWELL
            while self.rank == 0 and left < self.world and time.monotonic() < deadline:
                time.sleep(0.01)
                left = self.store.add("left", 0)
        except RuntimeError:  # the store went first
            return

    def errors(self) -> list[str]:
        """Of the processes that ended with an error, their words."""
        found = self._notes()
        return [f"process {rank} ended: {text}" for rank, (kind, text) in found.items() if kind == "error"]

    def lost(self, reason: str) -> BaseException:
        """What to raise when a process is no longer heard: which it is, by the signs of life within `SUSPICION`, or
        what it said itself.
        """
        silent = self.others
        try:
            signs, deadline = Signs(self), time.monotonic() + SUSPICION
            while (silent := signs.missing()) and time.monotonic() < deadline:
                time.sleep(0.05)
        except KeyboardInterrupt:  # the launcher ends what is left: what is known must do
            pass
        except RuntimeError:
            msg = f"the launcher, or the process that keeps its store, is gone ({brief(reason)}). {AGAIN}"
            return PeerLost(msg, is_mine_to_say=True)
        if words := self.errors():
            return PeerLost(". ".join(words))
        if silent:
            names = ", ".join(str(rank) for rank in silent)
            msg = f"process {names} of {self.world} went silent: it was killed, or its machine is gone"
            if len(silent) > 1:
                msg = f"processes {names} went silent: they were killed, or their machine is gone"
            return PeerLost(f"{msg}. {AGAIN}", is_mine_to_say=set(silent) >= set(range(self.rank)))
        if self._is_interrupted or any(kind == "interrupted" for kind, _ in self._notes().values()):
            return KeyboardInterrupt()
        return PeerLost(f"the processes lost touch with each other ({brief(reason, 200)}). {AGAIN}")

    def _post(self, key: str, value: Any) -> None:
        try:
            self.store.set(key, json.dumps(value))
        except RuntimeError as error:
            raise self.lost(str(error)) from None
        self._posted.append(key)

    def _notes(self) -> dict[int, tuple[str, str]]:
        try:
            ended = [rank for rank in self.others if self.store.check([f"end/{rank}"])]
            return {rank: tuple(json.loads(self.store.get(f"end/{rank}"))) for rank in ended}
        except RuntimeError:
            return {}


class Signs:
    """The other processes' signs of life, watched from when this is made."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._last: dict[int, tuple[int, float]] = {}
        self._first: dict[int, int] = {}

    def oldest(self) -> float:
        """Seconds since the last sign of the process that has been silent for longest."""
        now = time.monotonic()
        for rank in self._board.others:
            beats = self._beats(rank)
            if rank not in self._last or self._last[rank][0] != beats:
                self._last[rank] = beats, now
        return max((now - when for _, when in self._last.values()), default=0.0)

    def missing(self) -> list[int]:
        """The processes that have neither given a sign since nor said that they end."""
        found = []
        for rank in self._board.others:
            beats = self._beats(rank)
            if self._first.setdefault(rank, beats) == beats and not self._board.store.check([f"end/{rank}"]):
                found.append(rank)
        return found

    def _beats(self, rank: int) -> int:
        return self._board.store.add(f"beat/{rank}", 0)
