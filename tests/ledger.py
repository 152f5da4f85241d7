"""What torch cannot do with plain softmax code, and so is not asked of xfn. Nothing else may be missing.

``python -m tests.ledger`` compiles them with plain softmax attention, and says where torch fails; the law in
``laws/test_compile.py`` runs it, so that an entry whose reason is gone fails and is struck out.
"""

from collections.abc import Iterator

import torch
import torch._dynamo.config
from torch import Tensor

from .transforms import TRANSFORMS, Point, Tensors, Transform

CANNOT_COMPILE = {
    "linearize": "Dynamo does not trace linearize: https://github.com/pytorch/pytorch/pull/123118",
    "make_fx_grad": "make_fx is itself a tracer, and Dynamo does not trace tracers",
    "functionalize": "functionalize takes a function that Dynamo cannot pass on",
    "export": "export is itself a tracer, and Dynamo does not trace tracers",
    "export_grad": "export is itself a tracer, and Dynamo does not trace tracers",
    "ensemble": "its modules are made inside; made outside, as in test_a_compiled_ensemble, it works",
    "vmap_hessian": "vmap of jacfwd trips an assertion: https://github.com/pytorch/pytorch/issues/160508",
    "jacfwd_jacfwd": "so does jacfwd of jacfwd in several arguments: https://github.com/pytorch/pytorch/issues/160508",
    "jvp_jvp_grad": "fake tensors write to an expanded zero: https://github.com/pytorch/pytorch/issues/151196",
}

COMPILES_ANEW = dict.fromkeys(
    ["embedding", "vocab"], "torch's rule for a map over tables reads their number, so code is made for each number"
) | {
    "moe": "and so do its rules for mapped cat, gather and scatter",
    "conv_mlp": "and its rule for mapped kernels of a convolution",
}

RELEASE = tuple(int(part) for part in torch.__version__.split(".")[:2])
if RELEASE < (2, 12):
    CANNOT_COMPILE |= dict.fromkeys(
        ["backward", "is_grads_batched", "double_backward", "dual_of_backward", "checkpoint", "checkpoint_reentrant"],
        "Dynamo traces requires_grad_ since 2.12: https://github.com/pytorch/pytorch/pull/176984",
    )
if RELEASE < (2, 13):
    CANNOT_COMPILE |= dict.fromkeys(
        ["jacrev", "jacfwd", "hessian", "jacrev_jacrev"],
        "the basis of a Jacobian in several arguments, or outputs, is laid out from a tensor's values until 2.13",
    )


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensors:
    s = torch.einsum("...mhk,...nhk->...hmn", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("...hmn,...nhv->...mhv", s.softmax(-1), v), s.logsumexp(-1)


def compiled(transform: Transform, f: object, at: Point, backend: str) -> object:
    """A transform of f, all of it inside one compiled graph."""
    program = lambda x, t, s, xs, ts: transform(f, Point(x, t, s, xs, ts))
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        return torch.compile(program, fullgraph=True, backend=backend)(at.x, at.t, at.s, at.xs, at.ts)


def verdicts() -> Iterator[str]:
    """Of each entry its name, and the kind of error that compiling plain softmax attention ends with, or none."""
    draw = lambda *lead: tuple(torch.randn(*lead, n, 2, 2, dtype=torch.float64) for n in (3, 4, 4))
    at = Point(draw(), draw(), draw(), draw(3), draw(3))
    for transform in TRANSFORMS:
        if transform.__name__ in CANNOT_COMPILE:
            torch.compiler.reset()
            try:
                compiled(transform, softmax_attention, at, "aot_eager")
            except Exception as error:
                yield f"{transform.__name__} {type(error).__module__}"
            else:
                yield f"{transform.__name__} compiles"


if __name__ == "__main__":
    print("\n".join(verdicts()))
