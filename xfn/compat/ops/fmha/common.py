"""What one call of an attention is given, in one of three formats, and the operators by which its kernels are named.

    BMK      [B, M, K]          one head
    BMHK     [B, M, H, K]
    BMGHK    [B, M, G, H, K]    G groups of H heads; keys of a group are its one head, expanded

An operator is a name for the backends that may serve it, which are tried in their order.
"""

from dataclasses import dataclass
from inspect import isclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...._core.dispatch import Call, reasons
from ...._core.kinds import FLOATS
from ...._core.levels import plain
from ....bias import Bias, dense
from ....ops._calls import checked
from ....ops.attention import ATTENTION
from . import attn_bias as biases
from ._packed import groups_of, unpacked
from .attn_bias import VARLEN_BIASES, AttentionBias, LowerTriangularMask, LowerTriangularMaskWithTensorBias

BIASES = tuple(
    b for b in vars(biases).values() if isclass(b) and issubclass(b, AttentionBias) and b is not AttentionBias
)


@dataclass(eq=False)
class Inputs:
    """The arguments of an attention, as they were given; ``is_partial`` changes nothing."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_bias: Tensor | AttentionBias | None = None
    p: float = 0.0
    scale: float | None = None
    output_dtype: torch.dtype | None = None
    is_partial: bool = False

    def validate_inputs(self) -> None:
        """What is wrong whichever operator is to run."""
        q, k, v, bias = self.query, self.key, self.value, self.attn_bias
        shapes = f"query {list(q.shape)}, key {list(k.shape)}, value {list(v.shape)}"
        if not q.dim() == k.dim() == v.dim() or q.dim() not in (3, 4, 5):
            raise ValueError(f"query, key and value are all BMK, all BMHK or all BMGHK, but got {shapes}")
        if not q.device == k.device == v.device:
            raise ValueError(f"query, key and value are on {q.device}, {k.device} and {v.device}")
        if not q.dtype == k.dtype == v.dtype and not k.dtype == v.dtype == torch.int32:
            raise ValueError(f"query, key and value are {q.dtype}, {k.dtype} and {v.dtype}")
        heads = (q.shape[0], *q.shape[2:-1])
        fit = k.shape[:-1] == v.shape[:-1] and (k.shape[0], *k.shape[2:-1]) == heads
        if not fit or (q.shape[-1] != k.shape[-1] and k.dtype != torch.int32):
            raise ValueError(f"shapes contradict each other, for none is broadcast: {shapes}")
        if q.dim() == 3 and not (isinstance(bias, Tensor) or _is_bias_type_supported_in_BMK(type(bias))):
            raise ValueError(f"BMK goes with no bias, a tensor or LowerTriangularMask, not with {type(bias).__name__}")
        held = bias.tensor if isinstance(bias, LowerTriangularMaskWithTensorBias) else bias
        wanted = (q.shape[0], q.shape[-2], q.shape[1], k.shape[1])
        if q.dim() == 4 and isinstance(held, Tensor) and tuple(held.shape) != wanted:
            raise ValueError(f"attn_bias has shape {list(held.shape)}, but {shapes} want {list(wanted)}: expand it")
        if isinstance(held, Tensor) and held.dtype not in (q.dtype, torch.bool):
            raise ValueError(f"attn_bias is {held.dtype}, but query is {q.dtype}: pass attn_bias.to(query.dtype)")
        if isinstance(bias, VARLEN_BIASES) and q.shape[0] != 1:
            raise ValueError(f"{type(bias).__name__} wants one batch, but {shapes}: reshape them to [1, B * M, ...]")
        if not 0.0 <= self.p <= 1.0:
            raise ValueError(f"p={self.p} must lie in [0, 1]")

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as ``[B, M, heads, K]``, and of the keys and values those that the bias speaks of, in floats."""
        q, k, v = self.query, self.key, self.value
        if q.dtype not in FLOATS or k.dtype not in (*FLOATS, torch.int32):
            known = ", ".join(map(str, FLOATS))
            raise NotImplementedError(f"no operator takes query {q.dtype} and key {k.dtype}: there are {known}")
        if all(t.dim() > 3 and t.shape[-2] > 1 and t.stride(-2) == 0 and _idle(t) for t in (k, v)):
            k, v = k[..., :1, :], v[..., :1, :]
        if isinstance(self.attn_bias, AttentionBias):
            k, v = self.attn_bias.keys(k, v)
        if k.dtype == torch.int32:
            groups = groups_of(q.shape[-1], k, v)
            k, v = unpacked(k, groups), unpacked(v, groups)
        wide = q.dtype if self.output_dtype is None else torch.promote_types(self.output_dtype, q.dtype)
        q, k, v = ((t.unsqueeze(2) if t.dim() == 3 else t.flatten(2, -2)).to(wide) for t in (q, k, v))
        return q, k, v

    def bias(self, M: int, N: int) -> Bias | None:
        """The bias of M queries and of N keys that it speaks of."""
        bias = self.attn_bias
        if bias is None:
            return None
        if isinstance(bias, Tensor):
            return dense(self._per_head(bias))
        if isinstance(bias, LowerTriangularMaskWithTensorBias):
            return type(bias)(self._per_head(bias.tensor)).as_bias(M, N)
        if isinstance(bias, AttentionBias):
            return bias.kept(M, N) if self.query.is_cpu and plain((self.query,)) else bias.as_bias(M, N)
        raise NotImplementedError(
            f"no operator takes an attn_bias of {type(bias).__name__}: pass a tensor, or one of fmha.attn_bias"
        )

    def _per_head(self, bias: Tensor) -> Tensor:
        """``[B, heads, M, N]``."""
        if self.query.dim() == 3:
            return bias.unsqueeze(1) if bias.dim() == 3 else bias
        if self.query.dim() == 5 and bias.dim() == 5:
            return bias.expand(-1, *self.query.shape[2:4], -1, -1).flatten(1, 2)
        return bias

    def restored(self, out: Tensor) -> Tensor:
        """``[B, M, heads, K]`` in the format and the dtype that were asked for."""
        out = out if self.output_dtype is None else out.to(self.output_dtype)
        return out.reshape(*self.query.shape[:-1], out.shape[-1])

    def restored_lse(self, lse: Tensor) -> Tensor:
        """``[B, heads, M]`` as ``[B, H, M]`` or ``[B, G, H, M]``."""
        return lse.unflatten(1, self.query.shape[2:4]) if self.query.dim() == 5 else lse


def _is_bias_type_supported_in_BMK(attn_bias_type: type) -> bool:
    return attn_bias_type in (type(None), Tensor, LowerTriangularMask)


def pack_fp8_tensorwise_per_head(x: Tensor, scale: Tensor | float, original_dtype: torch.dtype) -> Tensor:
    """Numbers of eight bits ``[B, M, H, K]`` times a scale, one or ``[B, H]``, in the dtype that they were of."""
    factor = scale[:, None, :, None] if isinstance(scale, Tensor) and scale.dim() == 2 else scale
    return (x.float() * factor).to(original_dtype)


def _idle(x: Tensor) -> bool:
    """Whether nobody may ask for a gradient of each of the heads that are one."""
    return plain((x,)) and not (x.requires_grad and torch.is_grad_enabled())


class AttentionOpBase:
    """An operator; ``BACKENDS`` are those of this library that may serve it.

    What runs here, on a CPU too, is told by :meth:`supports`; the devices, bounds and errors are those of its namesake.
    """

    NAME: ClassVar[str] = "any"
    MEMBER: ClassVar[str] = "forward"
    BACKENDS: ClassVar[tuple[str, ...]] = ATTENTION.backends
    SUPPORTED_DEVICES: ClassVar[frozenset[str]] = frozenset(("cuda",))
    SUPPORTED_DTYPES: ClassVar[frozenset[torch.dtype]] = frozenset(FLOATS)
    SUPPORTED_ATTN_BIAS_TYPES: ClassVar[tuple[Any, ...]] = (type(None), Tensor, *BIASES)
    SUPPORTED_MIN_K: ClassVar[int] = 1
    SUPPORTED_MAX_K: ClassVar[int] = 65536
    SUPPORTS_DROPOUT: ClassVar[bool] = True
    SUPPORTS_CUSTOM_SCALE: ClassVar[bool] = True
    SUPPORTS_DIFFERENT_VALUE_EMBED: ClassVar[bool] = True
    SUPPORTS_BMGHK: ClassVar[bool] = True
    SUPPORTS_PARTIAL: ClassVar[bool] = True
    SUPPORTS_OUTPUT_DTYPE: ClassVar[bool] = True
    IS_DETERMINISTIC: ClassVar[bool] = True
    VARLEN_LSE_PACKED: ClassVar[bool] = True
    CUDA_MINIMUM_COMPUTE_CAPABILITY: ClassVar[tuple[int, int]] = (5, 0)
    CUDA_MAXIMUM_COMPUTE_CAPABILITY: ClassVar[tuple[int, int] | None] = None
    ERROR_ATOL: ClassVar[dict[torch.dtype, float]]
    ERROR_RTOL: ClassVar[dict[torch.dtype, float]]
    _TEST_BATCH_SIZES: ClassVar[tuple[int, ...]] = (1, 3)
    _TEST_K: ClassVar[tuple[int, ...]] = (32, 128)

    @classmethod
    def supports(cls, d: Inputs) -> bool:
        """Whether it can run a call."""
        return not cls.not_supported_reasons(d)

    @classmethod
    def not_supported_reasons(cls, d: Inputs) -> list[str]:
        """Why it cannot run a call, backend by backend; none when it can."""
        try:
            d.validate_inputs()
            q, k, v = d.tensors()
            given, options = checked(q, k, v, d.bias(q.shape[1], k.shape[1]), 0.0, d.scale, None)
        except (ValueError, NotImplementedError) as error:
            return [str(error)]
        tensors: dict[str, Any] = dict(zip(ATTENTION.forward.names, given, strict=True))
        if cls.MEMBER == "backward":
            out = q.new_empty(*q.shape[:-1], v.shape[-1])
            lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.promote_types(q.dtype, torch.float32))
            tensors |= dict(zip(ATTENTION.backward.names[len(tensors) :], (out, lse, out), strict=False))
        needs = (True, True, True, False, False) if cls.MEMBER == "backward" else ()
        call = Call(ATTENTION.name, cls.MEMBER, tensors, options, needs)
        against = {backend: reasons(backend, call) for backend in cls.BACKENDS}
        if not all(against.values()):
            return []
        return [f"{backend}: {'; '.join(why)}" for backend, why in against.items()]

    @classmethod
    def shape_not_supported_reasons(cls, Mq: int, Mkv: int, K: int, Kv: int) -> list[str]:
        """Why it has no lengths or features as many as these; none: it has."""
        return [f"{n} features are more than {cls.SUPPORTED_MAX_K}" for n in (K, Kv) if n > cls.SUPPORTED_MAX_K]

    @classmethod
    def is_available(cls) -> bool:
        """Whether a device of its namesake is there, and any of its backends runs on it."""
        if not torch.cuda.is_available():
            return False
        q = torch.zeros(1, 1, 1, 16, device="cuda")
        return cls.supports(Inputs(q, q, q))

    @classmethod
    def info(cls) -> str:
        return "available" if cls.is_available() else "unavailable"


def _errors(double: float, single: float, half: float, brain: float) -> dict[torch.dtype, float]:
    return {torch.float64: double, torch.float32: single, torch.float16: half, torch.bfloat16: brain}


class AttentionFwOpBase(AttentionOpBase):
    """An operator for the value."""

    ERROR_ATOL: ClassVar[dict[torch.dtype, float]] = {
        torch.float64: 1e-12,
        torch.float32: 3e-4,
        torch.half: 4e-3,
        torch.bfloat16: 2e-2,
    }
    ERROR_RTOL: ClassVar[dict[torch.dtype, float]] = {
        torch.float64: 1e-12,
        torch.float32: 2e-5,
        torch.half: 4e-4,
        torch.bfloat16: 5e-3,
    }


class AttentionBwOpBase(AttentionOpBase):
    """An operator for the gradient."""

    MEMBER = "backward"
    ERROR_ATOL: ClassVar[dict[torch.dtype, float]] = {
        torch.float64: 1e-11,
        torch.float32: 9e-4,
        torch.half: 0.2,
        torch.bfloat16: 0.9,
    }
    ERROR_RTOL: ClassVar[dict[torch.dtype, float]] = {
        torch.float64: 1e-11,
        torch.float32: 1e-4,
        torch.half: 2e-2,
        torch.bfloat16: 0.1,
    }


AttentionOp = tuple[type[AttentionFwOpBase] | None, type[AttentionBwOpBase] | None]


def backend_of(op: Any) -> str | None:
    """The backend that an operator, or one for the value and one for the gradient, must be served by; None: any."""
    ops = [o for o in (op if isinstance(op, tuple) else (op,)) if o is not None]
    if not all(isclass(o) and issubclass(o, AttentionOpBase) for o in ops):
        raise ValueError(f"op={op!r} is no pair of operators: write (fmha.cutlass.FwOp, fmha.cutlass.BwOp), or None")
    common = [b for b in ATTENTION.backends if all(b in o.BACKENDS for o in ops)]
    if not common:
        raise ValueError(f"{' and '.join(o.NAME for o in ops)} have no backend in common")
    return common[0] if len(common) == 1 else None
