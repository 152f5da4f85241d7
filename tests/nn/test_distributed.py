"""Two processes train as one does: DistributedDataParallel, and parameters in shards."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

import xfn
from xfn import random
from xfn.nn import Module

DIMS = xfn.Dims(model=8, heads=2, length=6, vocab=11)
CONFIG = xfn.Encoder(DIMS, 2, causal=True)
TOKENS = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))


def step(net: torch.nn.Module, tokens: Tensor, steps: int = 2) -> None:
    optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(steps):
        logits, _ = net(tokens[:, :-1])
        error = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        error.backward()
        optimiser.step()


def fresh() -> Module:
    return Module(xfn.build(CONFIG), random.key(0))


def work(rank: int, port: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mine = TOKENS[2 * rank : 2 * rank + 2]
    replicated = fresh()
    step(DistributedDataParallel(replicated), mine)
    sharded: Any = fresh()
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(sharded, mesh=mesh)
    local = sum(t.to_local().numel() for t in sharded.parameters())
    step(sharded, mine)
    whole = {name: t.full_tensor() for name, t in sharded.state_dict().items()}
    if rank == 0:
        torch.save((replicated.state_dict(), whole, local), Path(folder) / "states.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # what gloo has still running when Python ends, ends it with an abort now and then


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(work, (port, str(tmp_path)), nprocs=2)
    replicated, sharded, local = torch.load(tmp_path / "states.pt")
    alone = fresh()
    step(alone, TOKENS)
    for name, wanted in alone.state_dict().items():
        torch.testing.assert_close(replicated[name], wanted)
        torch.testing.assert_close(sharded[name], wanted)
    assert local < 0.6 * sum(t.numel() for t in alone.parameters())
    assert "torch.distributed" in sys.modules
