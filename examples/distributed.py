"""Several processes: parameters in shards by FSDP2, and one attention over a sequence that no process has whole.

    python -m examples.distributed [--quick] [--seed N]
    torchrun --nproc-per-node 2 -m examples.distributed

The first command starts two processes by itself. Each trains on its part of a batch a model whose parameters lie in
shards, and then holds one part of a long sequence: keys and values go round a ring, every process attends with its own
queries to what it has in hand, and the parts are merged by their log-sum-exp; a part of the future is hidden by the
bias of one number. Gradients come back the way they went. Over NCCL where there are GPUs, else over gloo. The promise
is that outputs and gradients are as far from those of one process as 1e-5 of the largest, at most.

    W processes        M queries, N keys of one of them        H heads        K features of a head
"""

import os
import socket
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

import xfn
from xfn import bias, random

from ._shared import Options, Promise, options

PROMISE = Promise("distance from one process", 1e-5, least=False, form=".0e")
CONFIG = xfn.Encoder(xfn.Dims(model=64, heads=4, length=32, vocab=64), layers=2, causal=True)
H, K = 4, 32


class Pass(torch.autograd.Function):
    """Each process gives a tensor to the next one and takes that of the one before; gradients go back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return exchanged(x, 1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return exchanged(dy, -1)


def exchanged(x: Tensor, ahead: int) -> Tensor:
    rank, W = dist.get_rank(), dist.get_world_size()
    x, y = x.contiguous(), torch.empty_like(x)
    sends = dist.P2POp(dist.isend, x, (rank + ahead) % W), dist.P2POp(dist.irecv, y, (rank - ahead) % W)
    for work in dist.batch_isend_irecv(list(sends)):
        work.wait()
    return y


def ring_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over a sequence of which each process has ``[M, H, K]``, in order."""
    rank, W, N = dist.get_rank(), dist.get_world_size(), len(k)
    pair, parts = torch.stack([k, v]), []
    for step in range(W):
        # Now here is what began `step` processes before: oneself, the past, or the future, which is seen by nobody.
        seen = bias.causal() if step == 0 else bias.span(0, N if rank >= step else 0)
        parts.append(xfn.attention_with_lse(q, pair[0], pair[1], seen))
        if step + 1 < W:
            pair = Pass.apply(pair)  # type: ignore[no-untyped-call]
    return xfn.merge_attentions(*zip(*parts, strict=True))[0]


def apart(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def vector(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def train(net: torch.nn.Module, tokens: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        logits, _ = net(tokens[:, :-1])
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()


def sharded(key: Tensor, steps: int, device: torch.device) -> float:
    """Trains in shards, and alone; how far their parameters are apart."""
    rank, W = dist.get_rank(), dist.get_world_size()
    weights, draws = random.split(key)
    tokens = random.randint(draws, (4 * W, 33), 0, 64).to(device)
    alone = xfn.nn.Module(xfn.build(CONFIG), weights).to(device)
    net: Any = xfn.nn.Module(xfn.build(CONFIG), weights).to(device)
    fully_shard(net, mesh=dist.device_mesh.init_device_mesh(device.type, (W,)))
    train(net, tokens[4 * rank : 4 * rank + 4], steps)
    train(alone, tokens, steps)
    gap = apart(vector(p.full_tensor() for p in net.parameters()), vector(alone.parameters()))
    held = sum(p.to_local().numel() for p in net.parameters()) / sum(p.numel() for p in alone.parameters())
    if rank == 0:
        print(f"shards    each of {W} processes holds {held:.0%}; {steps} steps are {gap:.0e} apart from those of one")
    return gap


def in_context(key: Tensor, M: int, device: torch.device) -> float:
    """Attends round the ring, and alone; how far results and gradients are apart."""
    rank, W = dist.get_rank(), dist.get_world_size()
    drawn = random.normal(key, (4, W * M, H, K)).to(device)
    mine = [t[rank * M : (rank + 1) * M].clone().requires_grad_() for t in drawn[:3]]
    out = ring_attention(*mine)
    out.backward(drawn[3, rank * M : (rank + 1) * M])

    whole = [t.clone().requires_grad_() for t in drawn[:3]]
    wanted = xfn.attention(whole[0], whole[1], whole[2], bias.causal())
    wanted.backward(drawn[3])
    here = slice(rank * M, (rank + 1) * M)
    pairs = [(out, wanted), *((t.grad, u.grad) for t, u in zip(mine, whole, strict=True))]
    gap = torch.tensor(max(apart(a, b[here]) for a, b in pairs), device=device)
    dist.all_reduce(gap, dist.ReduceOp.MAX)
    if rank == 0:
        print(f"context   {W * M} tokens, {M} in each process: results and gradients {gap:.0e} apart")
    return gap.item()


def work(rank: int, W: int, port: int | None, chosen: Options, folder: str) -> None:
    """What one process does; the first writes down what was found."""
    if port is not None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(W)}
        torch.set_num_threads(1)
    gpus = torch.cuda.device_count() >= W
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo", rank=rank, world_size=W)
    first, second = random.split(random.key(chosen.seed))
    gaps = sharded(first, 2 if chosen.quick else 20, device), in_context(second, 32 if chosen.quick else 2048, device)
    if rank == 0:
        Path(folder, "found").write_text(repr(max(gaps)))
    dist.barrier()
    dist.destroy_process_group()


def alone(rank: int, *rest: Any) -> None:
    work(rank, *rest)
    os._exit(0)  # what gloo has still running when Python ends, ends it with an abort now and then


def main(arguments: Sequence[str] | None = None) -> float:
    """Starts two processes, or is one of those that torchrun started; how far all is from one process."""
    chosen = options(__doc__, arguments, picture=False)
    with tempfile.TemporaryDirectory() as folder:
        if "RANK" in os.environ:
            work(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), None, chosen, folder)
            if os.environ["RANK"] != "0":
                return 0.0
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            spawn(alone, (2, port, chosen, folder), nprocs=2)
        found = float(Path(folder, "found").read_text())
    return PROMISE.show(found, chosen.quick)


if __name__ == "__main__":
    main()
