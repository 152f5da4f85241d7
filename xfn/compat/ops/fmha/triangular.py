"""Biases of one sequence: whatever an attention may take in place of a tensor, and the causal and local ones.

Query i of Mq, key j of Mk, s = Mk − Mq:

    LowerTriangularMask                                      j ≤ i
    LowerTriangularFromBottomRightMask                       j ≤ i + s
    LowerTriangularFromBottomRightLocalAttentionMask(w)      i + s − w < j ≤ i + s
    LocalAttentionFromBottomRightMask(left, right)           i + s − left ≤ j ≤ i + s + right
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from .... import bias
from ....bias import Bias


class AttentionBias:
    """What an attention takes as ``attn_bias`` in place of a tensor.

    A class of your own needs ``materialize``, or ``as_bias``, with which nothing is written out.
    """

    HOLDS_DENSE_TENSOR = False

    def as_bias(self, M: int, N: int) -> Bias:
        """For M queries and N keys, as this library's own."""
        if type(self).materialize is AttentionBias.materialize:
            raise NotImplementedError(f"{type(self).__name__} has neither materialize nor as_bias")
        return bias.dense(self.materialize((M, N)))

    def kept(self, M: int, N: int) -> Bias:
        """As ``as_bias``, on a CPU, made once where many layers are given the same."""
        return self.as_bias(M, N)

    def keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the keys and values ``[B, N, ...]`` that ``as_bias`` speaks of: all of them."""
        return k, v

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """As a tensor of the shape ``[..., Mq, Mk]`` with −∞ where it hides, to look at."""
        M, N = shape[-2:]
        return expanded(self.as_bias(M, N).materialize(M, N, dtype, torch.device(device)), shape)

    def to(self, device: torch.device | str) -> Self:
        """With its tensors on a device."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class LowerTriangularMask(AttentionBias):
    """Causal, from the top-left corner: query i sees the keys j ≤ i. Arguments are of old, and change nothing."""

    def __init__(self, *tensor_args: Any, **tensor_kwargs: Any) -> None:
        pass

    def as_bias(self, M: int, N: int) -> Bias:
        return bias.causal()

    def add_bias(self, bias: Tensor) -> "LowerTriangularMaskWithTensorBias":
        return LowerTriangularMaskWithTensorBias(bias)


class LowerTriangularMaskWithTensorBias(LowerTriangularMask):
    """Causal, from the top-left corner, and a tensor added, with gradient."""

    HOLDS_DENSE_TENSOR = True

    def __init__(self, bias: Tensor) -> None:
        self.tensor = bias

    @property
    def _bias(self) -> Tensor:
        return self.tensor

    def as_bias(self, M: int, N: int) -> Bias:
        return bias.causal() + bias.dense(self.tensor)

    def materialize(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """As of any bias; the shape is broadcast with that of the tensor, but for ones in front that it lacks."""
        held = self.tensor.shape
        while len(held) > len(shape) and held[0] == 1:
            held = held[1:]
        whole = torch.broadcast_shapes(tuple(shape), held)
        return AttentionBias.materialize(self.to(device), whole, dtype, device)

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.tensor.to(device))


class LowerTriangularFromBottomRightMask(AttentionBias):
    """Causal, from the bottom-right corner: query i sees the keys j ≤ i + Mk − Mq."""

    def as_bias(self, M: int, N: int) -> Bias:
        return bias.causal("bottom-right")

    def make_local_attention(self, window_size: int) -> "LowerTriangularFromBottomRightLocalAttentionMask":
        return LowerTriangularFromBottomRightLocalAttentionMask(window_size)


class LowerTriangularFromBottomRightLocalAttentionMask(LowerTriangularFromBottomRightMask):
    """The last ``_window_size`` keys of those that are seen from the bottom-right corner."""

    def __init__(self, _window_size: int) -> None:
        self._window_size = window(_window_size)

    def as_bias(self, M: int, N: int) -> Bias:
        return bias.local(self._window_size - 1, 0, "bottom-right")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._window_size})"


class LocalAttentionFromBottomRightMask(AttentionBias):
    """Keys up to ``window_left`` before and ``window_right`` behind the diagonal from the bottom-right corner."""

    def __init__(self, window_left: int, window_right: int) -> None:
        if window_left < 0 or window_right < 0:
            raise ValueError(f"a window reaches 0 keys or more, but got {window_left} and {window_right}")
        self.window_left, self.window_right = window_left, window_right

    def as_bias(self, M: int, N: int) -> Bias:
        return bias.local(self.window_left, self.window_right, "bottom-right")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.window_left}, {self.window_right})"


def window(size: int) -> int:
    """A number of keys, at least one."""
    if size <= 0:
        raise ValueError(f"window_size={size} must be at least 1")
    return size


def expanded(drawn: Tensor, shape: Sequence[int]) -> Tensor:
    """``[..., Mq, Mk]`` with the leading dims of a shape; more than it has must be ones."""
    more = drawn.dim() - len(shape)
    return (drawn.reshape(drawn.shape[more:]) if more > 0 else drawn).expand(tuple(shape))
