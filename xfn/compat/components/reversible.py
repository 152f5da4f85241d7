"""Residual layers on two halves of the features, which keep the activations of none."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...ops.reversible import reversible
from .._drawn import drawn


class Deterministic(torch.nn.Module):
    """A layer, under the name of its checkpoints."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the layer gives."""
        return self.net(*args, **kwargs)  # type: ignore[no-any-return]


class ReversibleBlock(torch.nn.Module):
    """y1 = x1 + f(x2), y2 = x2 + g(y1), of two halves of the features."""

    def __init__(self, f: torch.nn.Module, g: torch.nn.Module, split_dim: int = -1) -> None:
        super().__init__()
        self.f, self.g, self.split_dim = Deterministic(f), Deterministic(g), split_dim

    def forward(
        self, x: Tensor, f_args: Mapping[str, Any] | None = None, g_args: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Both halves again."""
        return _run([self], x, f_args or {}, g_args or {})


class ReversibleSequence(torch.nn.Module):
    """Blocks of pairs (f, g), whose activations take the memory of one.

    Example:
        >>> net = ReversibleSequence([[torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)] for _ in range(3)])
        >>> net(torch.ones(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, blocks: Iterable[Any]) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([ReversibleBlock(f, g) for f, g in blocks])

    def forward(self, x: Tensor, arg_route: tuple[bool, bool] = (True, False), **kwargs: Any) -> Tensor:
        """Of ``x [..., 2 E]``.

        Args:
            arg_route: whether all else goes to f, and to g.
        """
        f_args, g_args = (kwargs if route else {} for route in arg_route)
        return _run(list(self.blocks), x, f_args, g_args)


def _run(blocks: list[Any], x: Tensor, f_args: Mapping[str, Any], g_args: Mapping[str, Any]) -> Tensor:
    """A stack, whose parameters are named by the block that they are of."""
    dim = blocks[0].split_dim if blocks else -1

    def through(side: str, given: Mapping[str, Any]) -> Any:
        def layer(params: Mapping[str, Any], x: Tensor, key: Tensor | None = None) -> Tensor:
            ((name, own),) = params.items()
            net = getattr(blocks[int(name)], side).net
            if key is None:
                return torch.func.functional_call(net, own, (x,), dict(given))  # type: ignore[no-any-return]
            with torch.random.fork_rng([x.device] if x.is_cuda else []):
                torch.manual_seed(int(key.tolist()[0]))
                return torch.func.functional_call(net, own, (x,), dict(given))  # type: ignore[no-any-return]

        return layer

    params = [
        tuple({str(i): dict(getattr(block, side).net.named_parameters())} for side in "fg")
        for i, block in enumerate(blocks)
    ]
    drops = any(isinstance(m, torch.nn.Dropout) and m.p and m.training for block in blocks for m in block.modules())
    key = drawn() if drops else None
    x1, x2 = x.chunk(2, dim)
    return torch.cat(reversible(through("f", f_args), through("g", g_args))(params, x1, x2, key=key), dim)
