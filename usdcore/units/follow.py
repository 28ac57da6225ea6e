"""Would the host's own code still run when entries go? Each recorded op is run again on the smaller shapes.

An op runs with inputs of the shapes that the labels say, and with its size arguments evaluated again from the host's
expressions; the result must have the shape that the labels say. Where an argument is an int attribute of a module and
must change, the attribute has to follow the group. Where one size of a reshape does not follow by itself, that one
argument is to be rewritten as -1. Whatever else does not fit is a reason why the group can't be pruned, with the line
of the host's code.
"""

from __future__ import annotations

from itertools import compress
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from usdcore import rewrite
from usdcore.rewrite import Edit
from usdcore.units.execute import Blank
from usdcore.units.removal import BoolArray, Removal, Shape
from usdcore.units.sizes import Expr, evaluate, leaves
from usdcore.units.trace import numbers, refill
from usdcore.units.types import Attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from usdcore.units.execute import Executor
    from usdcore.units.tally import Tally
    from usdcore.units.trace import Op

    Edits = tuple[tuple[str, Edit], ...]

# Ops whose int arguments are sizes; in any other op an int that changes would change the result.
SIZED = frozenset(
    {"reshape", "view", "_unsafe_view", "expand", "repeat", "unflatten", "split", "split_with_sizes", "slice"}
    | {"conv1d", "conv2d", "conv3d", "layer_norm", "rms_norm", "group_norm"}
    | {"zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full"}
)

RESHAPES = frozenset({"reshape", "view", "_unsafe_view"})

# Ops whose positions are no code of the host's: surgery writes them anew.
LAID_OUT = frozenset({"ragged_place", "ragged_pack"})


def follow(tally: Tally, executor: Executor) -> list[tuple[tuple[Attribute, ...], Edits]]:
    """The attributes that follow each group, and what its host's code needs rewritten, by module; adds a reason to each
    group that the host's code can't do without.

    Two removals are tried: the first entry of each group, and all but the last.
    """
    found: list[dict[tuple[int, Expr], int]] = []
    edits: set[tuple[int, str, Edit]] = set()
    for chosen in (_first, _all_but_last):
        removed = np.concatenate([np.zeros(0, bool), *(chosen(draft.size) for draft in tally.drafts)])
        replay = Replay(Removal(tally, removed), executor)
        replay.run()
        for group, reasons in replay.removal.reasons.items():
            tally.drafts[group].reasons.extend(reasons)
        found.append(replay.per_entry)
        edits |= replay.edits
    for key in found[0].keys() | found[1].keys():
        if found[0].get(key) != found[1].get(key):
            tally.drafts[key[0]].reasons.append(f"{_words(key[1])} does not fall by the same for each entry")
    return [
        (
            tuple(Attribute(leaf[1], leaf[2], step) for (owner, leaf), step in found[0].items() if owner == group),
            tuple(sorted((module, edit) for owner, module, edit in edits if owner == group)),
        )
        for group in range(len(tally.drafts))
    ]


class Replay:
    """Runs the touched ops of one removal.

    `per_entry` is by how much each attribute falls, by group and attribute; `edits` are group, module and edit.
    """

    def __init__(self, removal: Removal, executor: Executor) -> None:
        self.removal = removal
        self.flow = removal.flow
        self.trace = removal.trace
        self.executor = executor
        self.per_entry: dict[tuple[int, Expr], int] = {}
        self.edits: set[tuple[int, str, Edit]] = set()

    def run(self) -> None:
        """Find the attributes that follow, then run every op that the removal or an attribute touches."""
        removal = self.removal
        ops = [op for op in (*self.trace.ops, *self.trace.wholes) if not op.is_part]
        is_touched = [any(removal.kept(v) for v in (*op.inputs, *op.outputs)) for op in ops]
        for op in compress(ops, is_touched):
            self._solve(op)
        for op, touched in zip(ops, is_touched, strict=True):
            if touched:
                self._check(op, removal.groups)
            elif any(self._changes(expr) for expr in (*op.sizes.values(), *op.loose)):
                self._check(op, self._following)
        for leaf in self.trace.ends:
            if self._changes(leaf):
                for group in self._owners(leaf):
                    removal.reasons[group].append(f"{_words(leaf)} is also used to compute a number that is not a size")

    def _solve(self, op: Op) -> None:
        """An attribute that is given as a size must become the size that the labels ask for."""
        flat = numbers((op.args, op.kwargs)) if op.sizes else []
        for position, expr in op.sizes.items():
            now = flat[position]
            needed = self._needed(op, position, now) if expr[0] == "attr" and now >= 0 else None
            if needed is None or needed == now:
                continue
            groups = self.removal.groups(op)
            if self.removal.attributes.setdefault(expr, needed) != needed:
                self._blame(groups, f"{_words(expr)} would need two values, at {self.flow.where(op)}")
            step, rest = divmod(now - needed, sum(int(self.removal.counts[g]) for g in groups))
            if rest or len(groups) > 1:
                self._blame(groups, f"{_words(expr)} does not follow one group alone, at {self.flow.where(op)}")
            self.per_entry.update({(group, expr): step for group in groups})

    def _needed(self, op: Op, position: int, now: int) -> int | None:
        """What the int at a position of the arguments has to be, where that is known."""
        shape = self.removal.shape(op.outputs[0])
        ndim = len(self.trace.values[op.inputs[0]].shape)
        if op.name in ("reshape", "view", "_unsafe_view", "expand"):
            return shape[position] if position < len(shape) else None
        if op.name in ("layer_norm", "rms_norm"):
            return self.removal.shape(op.inputs[0])[ndim - len(op.args[1]) + position]
        if op.name == "unflatten" and position > 0:
            return shape[int(op.args[1]) % ndim + position - 1]
        if op.name in ("split", "split_with_sizes"):
            dim = (op.args[2] if len(op.args) > 2 else 0) % ndim
            is_list = not isinstance(op.args[1], int)
            if position >= (len(op.args[1]) if is_list else 1):
                return None
            return self.removal.shape(op.outputs[position if is_list else 0])[dim]
        if op.name.startswith("conv") and now == self.trace.values[op.inputs[0]].shape[1]:
            return self.removal.shape(op.inputs[0])[1]  # one group for each channel
        if op.name == "slice" and position in (1, 2) and None not in op.args:
            kept = self.removal.kept(op.inputs[0]).get(op.args[1] % ndim)
            return now if kept is None else int(kept[:now].sum())
        return None

    def _check(self, op: Op, groups: Callable[[Op], list[int]]) -> None:
        problem = self._problem(op)
        if isinstance(problem, Edit):
            self.edits |= {(group, self.trace.path(op), problem) for group in groups(op)}
        elif problem is not None:
            self._blame(groups(op), problem)

    def _problem(self, op: Op) -> Edit | str | None:
        """Why an op does not do the same on the smaller shapes, or the edit that makes it; None if it does."""
        removal = self.removal
        if op.name in LAID_OUT:
            return None
        if any(self._changes(expr) for expr in (op.loose if op.name in SIZED else (*op.loose, *op.sizes.values()))):
            return f"a number in {self.flow.where(op)} changes that is not a size"
        if self._picks(op):
            return f"{self.flow.where(op)} picks positions by number"
        expected = [removal.shape(v) for v in op.outputs]
        if self._rerun(op) == expected[: self._num_own(op)]:
            return None
        inferred = self._inferred(op, expected[0])
        if inferred is not None:
            return inferred
        if numbers((op.args, op.kwargs)):
            before = list(self.trace.values[op.outputs[0]].shape)
            return f"a fixed size in {self.flow.where(op)}: its output {before} would not shrink with the entries"
        return f"not all that meets in {self.flow.where(op)} would shrink with the entries"

    def _inferred(self, op: Op, shape: Shape) -> Edit | str | None:
        """The edit that mends one size of a reshape: it follows from the others, or stays; None where that won't do."""
        before = numbers((op.args, op.kwargs))
        if op.name not in RESHAPES or not len(shape) == len(before) == len(op.sizes):
            return None
        sizes = {i: evaluate(expr, self.removal.leaf) for i, expr in op.sizes.items()}
        wrong = [i for i, size in sizes.items() if size not in (-1, shape[i])]
        if len(wrong) != 1 or (-1 in sizes.values() and shape[wrong[0]] != before[wrong[0]]):
            return None
        value = shape[wrong[0]] if -1 in sizes.values() else -1
        if self._rerun(op, {wrong[0]: value}) != [shape]:
            return None
        kind, place = self.trace.classes[self.trace.path(op)], op.places[0]
        function = rewrite.method_of(kind, place.code)
        if function is None or place.span is None:
            return f"a fixed size in {self.flow.where(op)}, which is not in a method of its module"
        if (why := rewrite.why_not(kind, function)) is not None:
            return f"a fixed size in {self.flow.where(op)}, and {why}"
        number = rewrite.size_argument(kind, function, place.span, wrong[0], len(before))
        return None if number is None else Edit(function, place.span, "size", number, value)

    def _rerun(self, op: Op, other: Mapping[int, int] = MappingProxyType({})) -> list[Shape]:
        """The output shapes of an op on the smaller inputs, some sizes given otherwise; none if it fails."""
        positions = iter(range(1 << 30))

        def number(now: int) -> int:
            position = next(positions)
            expr = op.sizes.get(position)
            if position in other:
                return other[position]
            return now if expr is None else evaluate(expr, self.removal.leaf)

        args, kwargs = refill((op.args, op.kwargs), self._blank, number if op.sizes else None)
        return self.executor.shapes(op.func, args, kwargs)

    def _num_own(self, op: Op) -> int:
        """The outputs that the op returns, without the views that it overwrote."""
        return sum(self.trace.values[v].overwrites is None for v in op.outputs)

    def _picks(self, op: Op) -> bool:
        """Whether an op names positions along an axis that shrinks, other than by a bound that follows."""
        if op.name not in ("slice", "select", "narrow", "roll"):
            return False
        kept = self.removal.kept(op.inputs[0])
        if op.name == "roll":
            ndim, dims = len(self.trace.values[op.inputs[0]].shape), (*op.args[2:3], ())[0]
            return bool(kept) if not dims else any(dim % ndim in kept for dim in dims)
        if not kept:
            return False
        stays = kept.get(op.args[1] % len(self.trace.values[op.inputs[0]].shape))
        if stays is None:
            return False
        if op.name != "slice" or len(op.args) > 4:
            return True
        start = op.args[2] if len(op.args) > 2 and op.args[2] is not None else 0
        expr = op.sizes.get(1)
        value = start if expr is None else evaluate(expr, self.removal.leaf)
        return bool(start < 0 or value != int(stays[:start].sum()))

    def _blank(self, value: int) -> Blank:
        return Blank(self.removal.shape(value), self.trace.values[value].dtype)

    def _following(self, op: Op) -> list[int]:
        """The groups whose attributes an op mentions."""
        mentioned = {leaf for expr in (*op.sizes.values(), *op.loose) for leaf in leaves(expr)}
        return sorted({group for leaf in mentioned for group in self._owners(leaf)})

    def _changes(self, expr: Expr) -> bool:
        return evaluate(expr, self.removal.leaf) != evaluate(expr, self.removal.was)

    def _owners(self, leaf: Expr) -> list[int]:
        if leaf[0] == "attr":
            return [group for group, own in self.per_entry if own == leaf]
        producer = self.trace.values[leaf[1]].producer
        return self.removal.groups(self.trace.ops[producer]) if producer >= 0 else []

    def _blame(self, groups: list[int], reason: str) -> None:
        for group in groups:
            self.removal.reasons[group].append(reason)


def _first(size: int) -> BoolArray:
    return np.arange(size) < min(1, size - 1)


def _all_but_last(size: int) -> BoolArray:
    return np.arange(size) < size - 1


def _words(leaf: Expr) -> str:
    return f"{leaf[1]}.{leaf[2]}" if leaf[0] == "attr" else "a shape"
