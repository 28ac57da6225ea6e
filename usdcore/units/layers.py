"""Label layers: an int64 tensor of an activation's shape that says which channel each position belongs to, or -1.

A layer is constant along most axes (every token has the same channels), so it is held expanded, with stride 0 there:
the shape ops of the host run on it as they are, and cost nothing. An activation may have several layers; a position
belongs to the label of each. `compact` gives the part that matters: size 1 along the axes on which the layer does not
depend.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

IntArray = npt.NDArray[np.int64]
Layers = tuple[Tensor, ...]

_FIRST, _ALL = slice(0, 1), slice(None)


def on_cpu() -> AbstractContextManager[Any]:
    """Labels are real numbers: a default device of the caller's must not take them to the meta device."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def along(base: int, shape: tuple[int, ...], axis: int) -> Tensor:
    """The layer whose position i along `axis` has label `base + i`."""
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return torch.arange(base, base + shape[axis]).view(view).expand(shape)


def none(shape: tuple[int, ...]) -> Tensor:
    """A layer without labels."""
    return torch.full((1,) * len(shape), -1).expand(shape)


def compact(layer: Tensor) -> IntArray:
    """The layer with size 1 along each axis on which it is constant."""
    array: IntArray = layer.numpy()
    return array[tuple(_FIRST if stride == 0 else _ALL for stride in array.strides)]


def tidy(layer: Tensor) -> Tensor:
    """The same layer, with stride 0 along every axis on which it is constant; for ops that had to copy it."""
    part = layer
    for axis, (size, stride) in enumerate(zip(layer.shape, layer.stride(), strict=True)):
        first = part.narrow(axis, 0, 1)
        if size == 1 or stride == 0 or bool((part == first).all()):
            part = first
    return part.contiguous().expand(layer.shape)


def axes(layer: Tensor) -> frozenset[int]:
    """The axes along which the layer changes."""
    sizes = zip(layer.shape, layer.stride(), strict=True)
    return frozenset(axis for axis, (n, stride) in enumerate(sizes) if n > 1 and stride)


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two layers of one shape say the same."""
    if a is b:
        return True
    x, y = compact(a), compact(b)
    return x.shape == y.shape and np.array_equal(x, y)


def merge(layers: list[Tensor]) -> Layers:
    """The layers without repetitions."""
    kept: list[Tensor] = []
    for layer in layers:
        if not any(is_same(layer, other) for other in kept):
            kept.append(layer)
    return tuple(kept)


def lies_along(layer: Tensor, axis: int) -> bool:
    """Whether the labels lie along an axis and no other, which may be of size 1."""
    found = axes(layer)
    return found == {axis} or (not found and layer.shape[axis] == 1)


def pairs(a: Tensor, b: Tensor) -> tuple[IntArray, IntArray] | None:
    """What meets at the positions of two layers of one shape, each pair once; None if they share no axis.

    Two layers of one label each share one.
    """
    x, y = compact(a), compact(b)
    if not x.size == y.size == 1 and not any(m > 1 and n > 1 for m, n in zip(x.shape, y.shape, strict=True)):
        return None
    left, right = (x, y) if x.shape == y.shape else np.broadcast_arrays(x, y)
    return unique_pairs(left.ravel(), right.ravel())


def unique_pairs(left: IntArray, right: IntArray) -> tuple[IntArray, IntArray]:
    """Each pair once, without those that have -1."""
    valid = (left >= 0) & (right >= 0)
    if not valid.all():
        left, right = left[valid], right[valid]
    if len(left) > 1 and not ((np.diff(left) > 0).all() or (np.diff(right) > 0).all()):
        span = int(right.max()) + 1
        left, right = np.divmod(distinct(left * span + right), span)
    return left.copy(), right.copy()


def distinct(values: IntArray) -> IntArray:
    """The different values, in order. As `np.unique`, but fast for the few values that labels are."""
    flat = values.ravel()
    if not bool((flat[1:] > flat[:-1]).all()):
        flat = np.sort(flat)
        is_new = np.ones(len(flat), dtype=bool)
        np.not_equal(flat[1:], flat[:-1], out=is_new[1:])
        flat = flat[is_new]
    return flat


def distinct_rows(table: IntArray) -> tuple[IntArray, IntArray]:
    """The different rows of [R, K], in order, and the place of each row of the table among them, [R]."""
    order = np.argsort(table[:, 0], kind="stable")
    first = table[order, 0]
    if bool((first[1:] > first[:-1]).all()):
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return table[order], place
    found, index = np.unique(table, axis=0, return_inverse=True)
    return found, index.ravel()


def drop_axes(layer: Tensor, dims: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """The layer at index 0 along `dims`, expanded to an op's output `shape`, with or without those axes."""
    for dim in dims:
        layer = layer.narrow(dim, 0, 1)
    if layer.ndim != len(shape):
        layer = layer.squeeze(tuple(dims))
    return layer.expand(shape)


def rows(layer: Tensor, axis: int) -> tuple[IntArray, tuple[int, ...]]:
    """What lies along `axis` for each position of the other axes: [R, K], and the other axes' compact sizes."""
    array = np.moveaxis(compact(layer), axis, -1)
    return array.reshape(-1, array.shape[-1]), array.shape[:-1]
