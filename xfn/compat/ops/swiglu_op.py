"""SwiGLU under its old names: w3 (silu(w1 x + b1) ⊙ (w2 x + b2)) + b3."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._core.errors import ShapeError
from ...ops.linear import Linear, linear


@dataclass(frozen=True)
class SwiGLUOp:
    """A name for how it is computed; there is one way here, and each of them is it."""

    NAME: str

    def supports(self, op: "SwiGLUOpDispatch") -> bool:
        return True

    def __call__(self, *args: Tensor | None) -> Tensor:
        return (swiglu_packed if self is SwiGLUPackedFusedOp and len(args) == 5 else swiglu)(*args)  # type: ignore[arg-type]


SwiGLUEagerOp = SwiGLUOp("eager")
SwiGLUFusedOp = SwiGLUOp("fused")
SwiGLUPackedFusedOp = SwiGLUOp("fused.p.cpp")


@dataclass(frozen=True)
class SwiGLUOpDispatch:
    """What a call is given, from which a way to compute it is chosen."""

    device: torch.device | str
    dtype: torch.dtype
    packed_weights: bool = False
    bias_enabled: bool = True

    @property
    def op(self) -> SwiGLUOp:
        return SwiGLUEagerOp

    @staticmethod
    def from_arguments(
        x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, w3: Tensor, b3: Tensor | None
    ) -> "SwiGLUOpDispatch":
        return SwiGLUOpDispatch(x.device, x.dtype, bias_enabled=b1 is not None)


def swiglu(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    w3: Tensor,
    b3: Tensor | None,
    *,
    op: SwiGLUOp | None = None,
) -> Tensor:
    """(silu(x w1ᵀ + b1) ⊙ (x w2ᵀ + b2)) w3ᵀ + b3.

    Args:
        x: ``[..., E]``.
        w1, w2: ``[F, E]``.
        b1, b2: ``[F]``, or None.
        w3: ``[V, F]``.
        b3: ``[V]``, or None.
        op: a name, which changes nothing.

    Returns:
        ``[..., V]``.

    Raises:
        ValueError: shapes that contradict each other.

    Example:
        >>> up, down = torch.ones(8, 4), torch.ones(3, 8)
        >>> swiglu(torch.ones(2, 4), up, None, up, None, down, None).shape
        torch.Size([2, 3])
    """
    if w1.dim() != 2 or w1.shape != w2.shape:
        raise ShapeError(f"w1 and w2 are both [F, E], but got {list(w1.shape)} and {list(w2.shape)}")
    gate, up = linear(_layer(w1, b1), x, "silu"), linear(_layer(w2, b2), x)
    return linear(_layer(w3, b3), gate * up)


def swiglu_packed(
    x: Tensor, w1w2: Tensor, b1b2: Tensor | None, w3: Tensor, b3: Tensor | None, *, op: SwiGLUOp | None = None
) -> Tensor:
    """As :func:`swiglu`, with w1 and w2 stacked.

    Args:
        w1w2: ``[2, F, E]``.
        b1b2: ``[2, F]``, or None.

    Example:
        >>> swiglu_packed(torch.ones(2, 4), torch.ones(2, 8, 4), None, torch.ones(3, 8), None).shape
        torch.Size([2, 3])
    """
    if w1w2.dim() != 3 or w1w2.shape[0] != 2:
        raise ShapeError(f"w1w2 is [2, F, E], but got {list(w1w2.shape)}")
    b1, b2 = (None, None) if b1b2 is None else b1b2.unbind(0)
    w1, w2 = w1w2.unbind(0)
    return swiglu(x, w1, b1, w2, b2, w3, b3)


class SwiGLU(torch.nn.Module):
    """:func:`swiglu` with its weights: ``w12``, which holds w1 and w2, or both of them apart; and ``w3``."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        bias: bool = True,
        *,
        _pack_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.in_features, self.hidden_features = in_features, hidden_features
        self.out_features = in_features if out_features is None else out_features
        both: torch.nn.Linear | None = None
        one: torch.nn.Linear | None = None
        other: torch.nn.Linear | None = None
        if _pack_weights:
            both = torch.nn.Linear(in_features, 2 * hidden_features, bias, **kwargs)
        else:
            one, other = (torch.nn.Linear(in_features, hidden_features, bias, **kwargs) for _ in range(2))
        self.w12, self.w1, self.w2 = both, one, other
        self.w3 = torch.nn.Linear(hidden_features, self.out_features, bias, **kwargs)
        self.op: SwiGLUOp | None = None

    def forward(self, x: Tensor) -> Tensor:
        return swiglu(x, *self._ordered_params(), op=self.op)

    def _ordered_params(self) -> tuple[Any, ...]:
        """w1, b1, w2, b2, w3, b3."""
        first: tuple[Any, ...]
        if self.w12 is None:
            assert self.w1 is not None
            assert self.w2 is not None
            first = (self.w1.weight, self.w1.bias, self.w2.weight, self.w2.bias)
        else:
            (w1, w2), b12 = self.w12.weight.chunk(2), self.w12.bias
            b1, b2 = (None, None) if b12 is None else b12.chunk(2)
            first = (w1, b1, w2, b2)
        return (*first, self.w3.weight, self.w3.bias)


def _layer(weight: Tensor, bias: Tensor | None) -> Linear:
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
