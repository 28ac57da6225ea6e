"""The processes of a run: the only place that knows torch.distributed.

`torchrun` and `accelerate launch` start the same command several times and say in the environment who is who. Each
process holds the whole model and takes its rows of every batch; gradients are averaged, so all take the same step.
Alone (the usual case) there is no process group, and every call here gives back what it was given.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from usdcore.engine.board import Board, PeerLost
from usdcore.engine.buckets import buckets
from usdcore.engine.checkpoint import decode, encode
from usdcore.errors import UsdcoreError, brief

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: How long a collective waits for a process that is alive and does not come. One that died is noticed at once.
TIMEOUT = timedelta(hours=2)
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: What accelerate's own config may ask for and no process here does.
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}

#: Runs of this process so far: a launcher's store outlives them, and no run may read another's messages.
_JOINED = itertools.count()


class Processes:
    """This process (`rank`) among the `world` of a run; all of them make the same calls in the same order.

    Errors of every call that talks to the others: `PeerLost`, where one of them is gone.
    """

    def __init__(self, rank: int = 0, world: int = 1, board: Board | None = None) -> None:
        self.rank, self.world, self._board = rank, world, board

    @property
    def is_alone(self) -> bool:
        """Whether nobody is asked: in a run of one process, or inside `apart`."""
        return self._board is None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, this process does something by itself: it asks nobody, and means are its own values."""
        board, self._board = self._board, None
        try:
            yield
        finally:
            self._board = board

    def mean(self, x: Tensor) -> Tensor:
        """The mean of a tensor over processes, the same to the bit in all of them. Its gradient is this process's own
        (that of the mean, times the number of processes): gradients are averaged later.
        """
        if self.is_alone:
            return x
        mean: Tensor = _Mean.apply(x, self._mean_of)
        return mean

    def means(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean of each tensor, without gradient; they travel in few buckets."""
        found: dict[int, Tensor] = {}
        for places in buckets(tensors):
            parts = [tensors[place].detach().reshape(-1) for place in places]
            flat = self._mean_of(torch.cat(parts))
            for place, part in zip(places, torch.split(flat, [len(part) for part in parts]), strict=True):
                found[place] = part.view(tensors[place].shape)
        return [found[place] for place in range(len(tensors))]

    def largest(self, x: Tensor) -> Tensor:
        """The largest value over processes of each entry."""
        if self.is_alone:
            return x
        x = x.detach().clone()
        with self._talking():
            dist.all_reduce(x, dist.ReduceOp.MAX)
        return x

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process. On the CPU: an accelerator does not wait for it."""
        if self.is_alone:
            return flags
        return tuple(bool(flag) for flag in self.largest(torch.tensor(flags, dtype=torch.uint8)).tolist())

    def exchange(self, value: Any) -> list[Any]:
        """Every process's value (JSON), by rank."""
        return [value] if self._board is None else self._board.exchange(value)

    def from_first(self, action: Callable[[], Any]) -> Any:
        """What `action` gives (JSON) in the first process, which takes its time; the others do not call it. Inside it,
        the first process is alone.
        """
        if self._board is None:
            return action()

        def alone() -> Any:
            with self.apart():
                return action()

        return self._board.from_first(alone)

    def same_everywhere(self, digest: str, what: str) -> None:
        """Errors: `digest`, which stands for `what`, is not the same in every process; the message says in which."""
        found = self.exchange(digest)
        usual, number = Counter(found).most_common(1)[0]
        if number < len(found):
            odd = ", ".join(str(rank) for rank, own in enumerate(found) if own != usual)
            msg = (
                f"{what} is not the same in every process (process {odd} differs), so the run ends. Do all machines "
                "have the same versions and see the same files? A plugin must not decide from what its own process "
                "alone has seen: see docs/processes.md"
            )
            raise UsdcoreError(msg)

    def gather(self, tree: Any) -> list[Any]:
        """In the first process the other processes' trees of dicts, lists, tensors, numbers, strings, None; elsewhere
        nothing.
        """
        if self._board is None:
            return []
        tensors: dict[str, Tensor] = {}
        content = encode(tree, tensors)
        flat = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        stated = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in flat.items()}
        received = []
        for rank, (other, shapes) in enumerate(self.exchange([content, stated])):
            if rank == 0 or (self.rank not in (0, rank)):
                continue
            if self.rank == rank:
                self._send([_bytes(t) for t in flat.values()])
                continue
            found = {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, (kind, shape) in shapes.items()}
            self._receive([_bytes(t) for t in found.values()], rank)
            received.append(decode(other, found))
        return received

    def _mean_of(self, flat: Tensor) -> Tensor:
        """In place."""
        with self._talking():
            dist.all_reduce(flat)
        return flat.div_(self.world)

    def _send(self, parts: Sequence[Tensor]) -> None:
        with self._talking():
            for part in parts:
                if part.numel():
                    dist.send(part, 0)

    def _receive(self, parts: Sequence[Tensor], rank: int) -> None:
        with self._talking():
            for part in parts:
                if part.numel():
                    dist.recv(part, rank)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """torch's error for a process that is gone, as what it means."""
        try:
            yield
        except RuntimeError as error:
            assert self._board is not None
            raise self._board.lost(_reason(error)) from None


ALONE = Processes()


class _Mean(torch.autograd.Function):
    """The mean over processes forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Callable[[Tensor], Tensor]) -> Tensor:
        return mean(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def launched() -> tuple[int, int, int]:
    """This process's rank, how many there are, and its number on this machine, as the launcher says; alone: 0, 1, 0.

    Errors: an environment that is half a launcher's, or that asks for a model spread over processes.
    """
    for variable, name in _SHARDING.items():
        if os.environ.get(variable, "").lower() == "true":
            msg = (
                f"accelerate's config asks for {name}, and here every process holds the whole model (docs/processes.md "
                f"says why, and what that takes); run accelerate config again without it, or use torchrun"
            )
            raise UsdcoreError(msg)
    try:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world <= 1:
            return 0, 1, 0
        missing = [name for name in _VARIABLES if name not in os.environ]
        if missing:
            msg = (
                f"the environment says WORLD_SIZE={world} but not {', '.join(missing)}: start several processes with "
                "torchrun or accelerate launch, or unset WORLD_SIZE"
            )
            raise UsdcoreError(msg)
        rank = int(os.environ["RANK"])
        return rank, world, int(os.environ.get("LOCAL_RANK", rank))
    except ValueError as error:
        msg = f"the environment's RANK, LOCAL_RANK or WORLD_SIZE is no number ({error}): start with torchrun"
        raise UsdcoreError(msg) from None


@contextmanager
def started(with_cuda: bool) -> Iterator[Processes]:
    """The processes of this run, joined while it is open. How this one ends is told to the others.

    Errors: the others can't be reached.
    """
    rank, world, _ = launched()
    if world == 1:
        yield ALONE
        return
    board = _join(rank, world, with_cuda)
    try:
        with board.beating(), _ending(board):
            yield Processes(rank, world, board)
    except BaseException:
        if not with_cuda:  # NCCL might wait for whoever is gone
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def _ending(board: Board) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:  # a launcher also ends all when one of them has failed
        board.interrupt()
        raise board.lost("interrupted") from None
    except PeerLost:
        raise
    except Exception as error:
        board.note("error", str(error) if isinstance(error, UsdcoreError) else f"{type(error).__name__}: {error}")
        raise
    board.leave()


def _join(rank: int, world: int, with_cuda: bool) -> Board:
    try:
        store, _, _ = next(rendezvous("env://", rank, world, timeout=TIMEOUT))
        backend = "cpu:gloo,cuda:nccl" if with_cuda else "gloo"
        turn = next(_JOINED)
        names = f"torch-{turn}", f"usdcore-{turn}"
        inner, outer = (dist.PrefixStore(name, store) for name in names)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=inner, rank=rank, world_size=world, timeout=TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        msg = f"process {rank} of {world} can't reach the others ({_reason(error)}); start them together with torchrun"
        raise UsdcoreError(msg) from error
    return Board(outer, rank, world)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return brief(lines[0] if lines else type(error).__name__, 200)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
