"""Two processes multiply, gather and share out as one does: values, gradients, transforms, layers."""

import os
import socket
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, func, nn
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from tests.cases import agree
from xfn.compat import ops as xops
from xfn.compat.ops import differentiable_collectives as of

M, E, F = 3, 4, 6  # of the sequence each process has M tokens, and of the features half
Call = Callable[..., list[Tensor]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, WS, Y, W = (
    drawn(2 * M, 2, E),
    [drawn(E, F, seed=1), drawn(E, 2 * F, seed=2)],
    drawn(2 * M, 2, F, seed=3),
    drawn(F, E),
)


def slope(whole: Tensor) -> Tensor:
    return torch.linspace(-1, 2, whole.numel(), dtype=whole.dtype).reshape(whole.shape)


class Case:
    """A function of whole tensors; how each of them and each result is shared out, by its dim; and ours of pieces."""

    def __init__(self, alone: Call, x: list[Tensor], dims: list[int | None], out: int | None, ours: Call) -> None:
        self.alone, self.x, self.dims, self.out, self.ours = alone, x, dims, out, ours


def mine(t: Tensor, dim: int | None, rank: int, processes: int = 2) -> Tensor:
    return t if dim is None else t.chunk(processes, dim)[rank]


def gathered(group: Any, x: Tensor, *ws: Tensor) -> list[Tensor]:
    found: dict[int, list[Tensor]] = {}

    def step(pieces: list[Tensor], rank: int, stream: Any) -> None:
        with torch.cuda.stream(stream()):
            found[rank] = [pieces[0] @ w for w in ws]

    xops.fused_allgather_and_anything([x], step, group=group)
    return [torch.cat([found[rank][i] for rank in range(2)]) for i in range(len(ws))]


def shared_out(group: Any, y: Tensor, w: Tensor) -> list[Tensor]:
    out = y.new_empty(M, 2, E)
    step = lambda outs, rank, _: outs[0].copy_(y.chunk(2)[rank] @ w)
    xops.fused_anything_and_reducescatter(step, [out], group=group)
    return [out]


def leading(fuse: bool) -> Call:
    return lambda g, x, *ws: xops.sequence_parallel_leading_matmul(x, ws, fuse=fuse, process_group=g)


def trailing(fuse: bool) -> Call:
    return lambda g, y, w: [xops.sequence_parallel_trailing_matmul(y, w, fuse=fuse, process_group=g)]


times = lambda x, *ws: [x @ w for w in ws]
LEAD: Any = (times, [X, *WS], [0, 1, 1], -1)
TRAIL: Any = (times, [Y, W], [-1, 0], 0)
CASES = {
    **{f"leading {fuse}": Case(*LEAD, leading(fuse)) for fuse in (True, False)},
    **{f"trailing {fuse}": Case(*TRAIL, trailing(fuse)) for fuse in (True, False)},
    "allgather linear": Case(
        *LEAD, lambda g, x, *ws: xops.fused_allgather_and_linear(x, [w.t() for w in ws], group=g)
    ),
    "linear reducescatter": Case(
        *TRAIL, lambda g, y, w: [xops.fused_linear_and_reducescatter(y, w.t(), group=g)]
    ),
    "allgather anything": Case(*LEAD, gathered),
    "anything reducescatter": Case(*TRAIL, shared_out),
    "copy": Case(
        times, [X, *WS], [None, 1, 1], -1, lambda g, x, *ws: times(of.copy_to_model_parallel_region(x, g), *ws)
    ),
    "reduce": Case(
        times, [Y, W], [-1, 0], None, lambda g, y, w: [of.reduce_from_model_parallel_region(y @ w, g)]
    ),
}  # fmt: skip


def layers(group: Any, sequence: bool) -> nn.Module:
    torch.manual_seed(0)
    options: Any = {"process_group": group, "bias": False, "sequence_parallel": sequence}
    up = xops.ColumnParallelLinear(E, [F, F], gather_output=False, **options)
    return nn.ModuleDict({"up": up, "down": xops.RowParallelLinear(F, E, input_is_parallel=True, **options)}).double()


def trained(group: Any, sequence: bool) -> tuple[Tensor, Tensor | None, dict[str, list[Any]]]:
    """What layers make of x, its gradient, and their weights with theirs."""
    net: Any = layers(group, sequence)
    x, dy = (mine(t, 0 if sequence else None, group.rank(), group.size()).clone() for t in (X, slope(X)))
    x.requires_grad_()
    gate, up = net["up"](x)
    out = net["down"](gate.sigmoid() * up)
    out.backward(dy)
    return out.detach(), x.grad, {name: [p.detach(), p.grad] for name, p in net.named_parameters()}


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    group, found = dist.new_group(), dict[str, Any]()
    for name, case in CASES.items():
        pieces = [mine(t, dim, rank).clone().requires_grad_() for t, dim in zip(case.x, case.dims, strict=True)]
        call = lambda *x, ours=case.ours: ours(group, *x)
        outs = call(*pieces)
        slopes = [mine(slope(whole), case.out, rank) for whole in case.alone(*case.x)]
        found[name] = outs, torch.autograd.grad(outs, pieces, slopes)
        if "anything" in name:
            continue
        x = tuple(t.detach() for t in pieces)
        loss = lambda *x, call=call, slopes=slopes: sum((y * s).sum() for y, s in zip(call(*x), slopes, strict=True))
        agree(func.grad(loss, tuple(range(len(x))))(*x), found[name][1])
        agree(func.jvp(lambda *x, call=call: tuple(call(*x)), x, x)[1], tuple(2 * y for y in outs))
        batch = torch.stack([x[0], -x[0]])
        rows = [func.grad(loss)(t, *x[1:]) for t in batch]
        agree(func.vmap(lambda t, x=x, loss=loss: func.grad(loss)(t, *x[1:]))(batch), torch.stack(rows))
        if name in ("leading True", "trailing True", "copy", "reduce"):
            compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(*pieces)
            agree((compiled, torch.autograd.grad(compiled, pieces, slopes)), found[name])
    for sequence in (False, True):
        found[f"layers {sequence}"] = trained(group, sequence)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # what gloo has still running when Python ends, ends it with an abort now and then


def test_two_processes_multiply_as_one(tmp_path: Path) -> None:
    """The weights of layers are every other row, and column, of those of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(work, (port, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, case in CASES.items():
        x = [t.clone().requires_grad_() for t in case.x]
        whole = case.alone(*x)
        slopes = torch.autograd.grad(whole, x, [slope(y) for y in whole])
        for rank, (outs, grads) in enumerate(ranks[name] for ranks in found):
            agree(outs, [mine(y, case.out, rank) for y in whole])
            agree(list(grads), [mine(g, dim, rank) for g, dim in zip(slopes, case.dims, strict=True)])
    for sequence in (False, True):
        out, dx, params = trained(ALONE, sequence)
        for rank, (piece, own, pieces) in enumerate(ranks[f"layers {sequence}"] for ranks in found):
            agree([piece, own], [mine(t, 0 if sequence else None, rank) for t in (out, dx)])
            for name, both in params.items():
                agree(pieces[name], [t[:, rank::2] if name == "down.weight" else t[rank::2] for t in both])


# One process.

ALONE: Any = dist.ProcessGroup(0, 1)
LINEAR: Any = {"process_group": ALONE, "bias": False}
x, w = torch.ones(4, 3), torch.ones(5, 3)
gather_linear: Any = partial(xops.fused_allgather_and_linear, group=ALONE)
linear_scatter: Any = partial(xops.fused_linear_and_reducescatter, group=ALONE)
columns: Any = xops.ColumnParallelLinear
WRONG: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "no list": (TypeError, "must be a list", lambda: columns(2, 2, process_group=ALONE)),
    "bias": (ValueError, "write bias=False", lambda: columns(2, [2], process_group=ALONE)),
    "gather": (ValueError, "write gather_output=False", lambda: columns(2, [2], **LINEAR)),
    "bias of rows": (ValueError, "write bias=False", lambda: xops.RowParallelLinear(2, 2, process_group=ALONE)),
    "whole input": (ValueError, "input_is_parallel=True", lambda: xops.RowParallelLinear(2, 2, **LINEAR)),
    "uneven": (AssertionError, "cannot share 3 features", lambda: xops.RowParallelLinear(
        3, 2, process_group=dist.ProcessGroup(0, 2), bias=False, input_is_parallel=True)),
    "uneven rows": (AssertionError, "cannot share 3 rows", lambda: of.scatter_to_sequence_parallel_region(
        x[:3], dist.ProcessGroup(0, 2))),
    "features": (AssertionError, "input and weight fit", lambda: gather_linear(x, w.t())),
    "one scale": (AssertionError, "both have a scale", lambda: linear_scatter(x, w, scale_weight=x)),
    "wide": (AssertionError, "eight bits", lambda: gather_linear(
        x, w, scale_weight=x, scale_scattered_input=x, out_dtype=torch.half)),
    "out": (AssertionError, "out for each weight", lambda: gather_linear(x, w, out=[x])),
    "shape": (AssertionError, r"out \[\[4, 5\]\]", lambda: linear_scatter(x, w, out=x)),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_refused(wrong: str) -> None:
    kind, match, call = WRONG[wrong]
    with pytest.raises(kind, match=match):
        call()


def test_results_are_written_and_scaled() -> None:
    out, outs, scale = torch.empty(1, 4, 5), [torch.empty(4, 5)], torch.tensor(0.5)
    agree(gather_linear(x, w, out=out), out[0])
    assert linear_scatter(x, [w], out=outs)[0] is outs[0]
    agree([out[0], outs[0]], [x @ w.t()] * 2)
    small, weight = (t.to(torch.float8_e4m3fn) for t in (x, w))
    got = gather_linear(small, weight, scale_scattered_input=scale, scale_weight=scale, out_dtype=torch.bfloat16)
    assert got.dtype == torch.bfloat16
    agree(got.float(), x @ w.t() / 4)


@pytest.mark.parametrize("of_what", ["allgather_and_linear", "linear_and_reducescatter"])
def test_one_warning_names_what_is_ignored(of_what: str) -> None:
    call: Any = getattr(xops, f"fused_{of_what}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call(x, w, group=ALONE, timeout_s=5, _wait=False)
        call(x, w, group=ALONE)
    assert [str(s.message) for s in said] == [f"fused_{of_what} has no use for timeout_s, _wait: ignored"]
