"""What numbers alone tell is made once, whatever is open when it is asked for."""

import torch
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from xfn._core.constants import constant

made: list[int] = []


@constant
def counted(n: int) -> Tensor:
    made.append(n)
    return torch.arange(n) * 2


def test_it_is_made_once() -> None:
    x = torch.randn(3, 4)
    for run in (
        lambda: counted(4),
        lambda: func.vmap(lambda x: x + counted(4))(x),
        lambda: func.vmap(func.grad(lambda x: (x * counted(4)).sum()))(x),
        lambda: func.jvp(lambda x: x * counted(4), (x,), (x,)),
    ):
        run()
    assert made.count(4) == 1
    assert counted(4) is counted(4)


def test_what_a_transform_asked_for_first_outlives_it() -> None:
    x = torch.randn(2, 5)
    for n, program in (
        (5, lambda: func.vmap(func.grad(lambda x: (x * counted(5)).sum()))(x)),
        (6, lambda: func.functionalize(lambda x: x + counted(6).sum())(x)),
        (7, lambda: func.jvp(lambda x: x * counted(7).sum(), (x,), (x,))),
    ):
        program()
        assert type(counted(n)) is Tensor
        assert counted(n).tolist() == list(range(0, 2 * n, 2))
        assert made.count(n) == 1
    with torch.inference_mode():
        assert not counted(8).is_inference()
    with forward_ad.dual_level():
        assert counted(9).sum() == 72


def test_what_traces_makes_its_own() -> None:
    traced = make_fx(lambda x: x + counted(11), tracing_mode="fake")(torch.zeros(11))
    assert torch.equal(traced(torch.zeros(11)), counted(11).float())
    compiled = torch.compile(lambda x: x + counted(12), fullgraph=True)
    assert torch.equal(compiled(torch.zeros(12)), counted(12).float())
    assert type(counted(11)) is type(counted(12)) is Tensor
