"""What every row of attention is made of: its tensors, and one way to attend as each contestant says it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import xfn
from benchmarks.attention import peers
from benchmarks.contest import Call, Contest
from benchmarks.machine import name

Attend = Callable[..., Tensor]

FORWARD, BOTH = "forward", "forward+backward"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NO_BACKWARD = "flex_attention has no backward on a CPU"


@dataclass(frozen=True)
class Settings:
    """What the command line asks for, and the matmul limits of this machine."""

    quick: bool
    flex: bool
    backend: str | None
    limits: Mapping[str, float]

    @property
    def ours(self) -> Attend:
        return partial(xfn.attention, backend=self.backend)


def tensors(
    B: int, H: int, S: int, D: int, dtype: torch.dtype, *, G: int | None = None, M: int | None = None
) -> list[Tensor]:
    """q, k, v and a gradient of the result, in our layout: [B, S, H, D]."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, d = ((M or S, H), (S, G or H), (S, G or H), (M or S, H))
    return [torch.randn(B, *shape, D, generator=generator).to(dtype) for shape in (q, k, v, d)]


def turned(ts: Sequence[Tensor]) -> list[Tensor]:
    """The same in the layout that torch's attentions like best: contiguous [B, H, S, D]."""
    return [t.transpose(-3, -2).contiguous() for t in ts]


def forward(f: Attend, ts: Sequence[Tensor]) -> Callable[[], Tensor]:
    return lambda: f(*ts)


def both(f: Attend, ts: Sequence[Tensor], d: Tensor) -> Callable[[], Any]:
    """f, and the gradient of every tensor that it takes."""
    leaves = [t.detach().requires_grad_() for t in ts]
    return lambda: torch.autograd.grad(f(*leaves), leaves, d)


@dataclass(frozen=True)
class Form:
    """One way to attend, as each contestant says it: functions of q, k, v and, where it is differentiated, a bias.
    A text says why a contestant takes no part."""

    ours: Attend
    sdpa: Attend
    softmax: Attend | str
    flex: Attend | str

    def contest(
        self,
        what: str,
        ts: Sequence[Tensor],
        more: Sequence[Tensor] = (),
        *,
        beside: Mapping[str, Call] | None = None,
        comparable: bool = True,
    ) -> Contest:
        """Each forward, or forward and backward, from q, k, v and a gradient as ``tensors`` makes them."""
        theirs = turned(ts)

        def call(f: Attend, ts: Sequence[Tensor], turned: int = 0, compiled: bool = False) -> Call:
            *leaves, d = ts
            run = forward(f, (*leaves, *more)) if what == FORWARD else both(f, (*leaves, *more), d)
            return Call(run, turned, compiled)

        flex = NO_BACKWARD if what == BOTH else self.flex
        rivals: dict[str, Call | str] = {
            "sdpa": call(self.sdpa, theirs, 3),
            "flex": flex if isinstance(flex, str) else call(flex, theirs, 3, compiled=True),
            "softmax": self.softmax if isinstance(self.softmax, str) else call(self.softmax, theirs, 3),
        }
        return Contest(call(self.ours, ts), rivals, beside or {}, comparable)


def plain(
    settings: Settings, S: int, dtype: torch.dtype, *, causal: bool = False, M: int | None = None, work: float = 0.0
) -> Form:
    """Attention to all keys, or to the past; ``work`` is what plain softmax would have to multiply, which it does
    not where that takes more than two seconds."""
    ours = settings.ours
    bias = xfn.bias.causal
    slow = settings.limits.get(f"{name(dtype)} matmul", float("inf"))
    return Form(
        ours=(lambda q, k, v: ours(q, k, v, bias())) if causal else ours,
        sdpa=peers.sdpa(causal=causal),
        softmax=(
            f"softmax is left out: torch multiplies {name(dtype)} at {slow / 1e9:.1f} GF/s"
            if work > 2 * slow
            else peers.softmax(past(M or S, S) if causal else None)
        ),
        flex=peers.flex(M or S, S, peers.earlier if causal else None) if settings.flex else peers.NO_FLEX,
    )


def past(M: int, N: int) -> Tensor:
    return torch.ones(M, N, dtype=torch.bool).tril()
