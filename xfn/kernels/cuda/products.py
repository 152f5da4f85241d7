"""Products over a pattern's entries in CUDA: see xfn/csrc/cuda/sparse.cuh."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..._core.dispatch import Call
from ..._core.entries import Entries, batched
from .library import load

DEVICE, DETAIL = load()
OPS = torch.ops.xfn_cuda
WIDEST, SMALL, BYTES = 1024, 256, 16
"""Features at most; rows up to which any alignment goes, others being whole vectors of so many bytes."""


def supports(call: Call) -> list[str]:
    return refused(call, WIDEST)


def refused(call: Call, most: int) -> list[str]:
    """What speaks against a device, a dtype, and rows of more features than some."""
    like = next(iter(call.tensors.values()))
    widest = max((t.shape[-1] for name, t in call.tensors.items() if name in ("q", "k", "v")), default=0)
    if like.device.type != DEVICE:
        return [f"it runs on {DEVICE}, not on {like.device.type}"]
    against = {
        "it needs compute capability 8.0, which this device has not": not _capable(like.device),
        "float64 is not float32, bfloat16 or float16": like.dtype == torch.float64,
        f"{widest} features are more than {most}": widest > most,
    }
    return [reason for reason, holds in against.items() if holds]


@cache
def _capable(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def launch(op: Any, like: Tensor, *args: Any) -> None:
    """Starts a kernel on the device of ``like``, in the stream that torch is in."""
    if not like.is_cuda:
        op(*args, 0)
        return
    with torch.cuda.device(like.device):
        op(*args, torch.cuda.current_stream().cuda_stream)


def room(features: int, widest: int, dtype: torch.dtype) -> int:
    """How many features a row has room for, in a call that has rows of ``widest``."""
    vector = BYTES // dtype.itemsize
    return features if widest <= SMALL else -(-features // vector) * vector


def rows(t: Tensor, widest: int) -> Tensor:
    """A tensor whose rows kernels can read: numbers side by side, and where some are many, whole vectors."""
    features, size = t.shape[-1], t.element_size()
    if widest > SMALL:
        steps = (step * size for length, step in zip(t.shape[:-1], t.stride(), strict=False) if length > 1)
        if t.stride(-1) == 1 and not any(step % BYTES for step in (*steps, features * size, t.data_ptr())):
            return t
        wide = t.new_zeros(*t.shape[:-1], room(features, widest, t.dtype))
        wide[..., :features] = t
        return wide
    return line(t)


def line(t: Tensor) -> Tensor:
    """Numbers side by side."""
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def cut(t: Tensor, features: int, batch: tuple[int, ...]) -> Tensor:
    """A result without the room behind its rows, in the batch that there is."""
    return t[..., :features].contiguous().reshape(*batch, *t.shape[1:-1], features)


class Launched(Entries):
    def between(self, q: Tensor, k: Tensor) -> Tensor:
        t = self.tables
        batch, (q, k, ends, places) = batched((q, 3), (k, 3), (t.row_ends, 2), (t.columns, 2))
        H, K = q.shape[-2:]
        values = _new(q, batch, H, places.shape[-1], live=ends.shape[-1])
        launch(OPS.between, q, rows(q, K), rows(k, K), line(ends), line(places), values)
        return values.reshape(*batch, *values.shape[1:])

    def to_queries(self, values: Tensor, v: Tensor) -> Tensor:
        t = self.tables
        return self._mix(values, v, t.row_ends, t.columns, None, values.shape[-2])

    def to_keys(self, values: Tensor, q: Tensor, G: int) -> Tensor:
        t = self.tables
        return self._mix(values, q, t.column_ends, t.rows, t.order, G)

    def softmax(self, values: Tensor) -> Tensor:
        batch, (values, ends) = batched((values, 2), (self.tables.row_ends, 2))
        out = _new(values, batch, *values.shape[1:], live=ends.shape[-1])
        launch(OPS.softmax, values, line(values), line(ends), out)
        return out.reshape(*batch, *out.shape[1:])

    def _mix(self, values: Tensor, v: Tensor, *rest: Any) -> Tensor:
        *tables, heads = rest
        pairs = ((values.float(), 2), (v, 3), *((t, 2) for t in tables))
        batch, (values, v, ends, places, order) = batched(*pairs)
        features = v.shape[-1]
        out = _new(v, batch, ends.shape[-1], heads, room(features, features, v.dtype))
        order = None if order is None else line(order)
        launch(OPS.mix, v, line(values), rows(v, features), line(ends), line(places), order, out)
        return cut(out, features, batch)


def _new(like: Tensor, batch: tuple[int, ...], *shape: int, live: int = 1) -> Tensor:
    """Where float32 results are written; zeros where there is no line to write them."""
    make = like.new_empty if live else like.new_zeros
    return make(math.prod(batch), *shape, dtype=torch.float32)
