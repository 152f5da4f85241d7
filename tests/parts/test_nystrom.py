"""Nyströmformer: exact with enough landmarks, its formula with fewer, and as if padding were not there."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, func

import xfn
from xfn import ShapeError, random
from xfn._core.dims import Dims
from xfn.parts.attention.nystrom import Nystrom, means

from ..cases import agree

H, K = 2, 4


def draw(*lengths: int, heads: int = H) -> tuple[Tensor, ...]:
    keys = random.split(random.key(0), len(lengths))
    return tuple(random.normal(s, (3, n, heads, K), dtype=torch.float64) for s, n in zip(keys, lengths, strict=True))


def formula(q: Tensor, k: Tensor, v: Tensor, L: int) -> Tensor:
    """One head of one example, ``[N, K]`` each."""

    def segments(x: Tensor) -> Tensor:
        short, longer = divmod(len(x), L)
        return torch.stack([part.mean(0) for part in x.split([short] * (L - longer) + [short + 1] * longer)])

    weights = lambda a, b: (a @ b.mT / K**0.5).softmax(-1)
    between = weights(segments(q), segments(k))
    out: Tensor = weights(q, segments(k)) @ torch.linalg.pinv(between) @ weights(segments(q), k) @ v
    return out


@pytest.mark.parametrize(("M", "N"), [(12, 12), (13, 13), (15, 11), (9, 17)])
def test_is_the_formula(M: int, N: int) -> None:
    q, k, v = draw(M, N, N)
    each = func.vmap(func.vmap(lambda q, k, v: formula(q, k, v, 4), 1, 1))(q, k, v)
    agree(Nystrom(4, exact=True).apply({}, q, k, v), each)
    agree(Nystrom(4, iterations=30).apply({}, q, k, v), each)
    agree(Nystrom(4, exact=True).apply({}, q, k[:, :, :1], v[:, :, :1])[..., 0, :], each[..., 0, :])


@pytest.mark.parametrize("landmarks", [10, 64])
def test_is_attention_with_as_many_landmarks_as_tokens(landmarks: int) -> None:
    q, k, v = draw(10, 10, 10)
    agree(Nystrom(landmarks).apply({}, q, k, v), xfn.attention(q, k, v))


def test_the_error_falls_with_landmarks() -> None:
    q, k, v = (random.normal(s, (64, 4, 8), dtype=torch.float64) for s in random.split(random.key(0), 3))
    errors = [(Nystrom(n).apply({}, q, k, v) - xfn.attention(q, k, v)).square().mean() for n in (2, 8, 32, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-20


def test_the_iteration_finds_the_inverse_of_each_matrix_alone() -> None:
    logits = random.normal(random.key(0), (50, 6, 6), dtype=torch.float64) + 3 * torch.eye(6)
    matrices = logits.softmax(-1)
    assert (Nystrom(iterations=10).inverse(matrices) - torch.linalg.pinv(matrices)).abs().max() < 1e-3
    q, k, v = draw(16, 16, 16)
    part = Nystrom(8, iterations=2)
    alone = torch.stack([part.apply({}, *(t[i] for t in (q, k, v))) for i in range(3)])
    agree(part.apply({}, q, k, v), alone)
    start = replace(part, iterations=0)
    agree(start.inverse(matrices), matrices.mT / matrices.sum(-2).amax(-1)[:, None, None])
    agree(replace(start, original_init=True).inverse(matrices), matrices.mT / matrices.sum(-2).max())


@pytest.mark.parametrize("landmarks", [3, 5])
@pytest.mark.parametrize("count", [12, 11, 8, 5, 4, 1])
def test_padding_is_as_if_it_were_not_there(count: int, landmarks: int) -> None:
    """Anywhere in the sequence, and with fewer tokens than landmarks, too."""
    q, k, v = (t[0] for t in draw(12, 12, 12))
    place = random.permutation(random.key(count), 12)[:count].sort().values
    kept = torch.zeros(12, dtype=torch.bool).index_fill(0, place, True)
    part = Nystrom(landmarks, exact=True)
    want = part.apply({}, q[place], k[place], v[place])
    agree(part.apply({}, q, k, v, kept)[place], want)
    noise = torch.where(kept[:, None, None], 0, torch.inf)
    agree(part.apply({}, q + noise, k + noise, v + noise, kept)[place], want)
    slopes = func.grad(lambda k, v: part.apply({}, q, k, v, kept)[place].sin().sum(), (0, 1))
    agree(slopes(k + noise, v + noise), slopes(k, v))
    cross = q[:7]
    agree(part.apply({}, cross, k, v, kept), part.apply({}, cross, k[place], v[place]))


def test_a_sequence_of_padding_gives_zeros() -> None:
    q, k, v = draw(12, 12, 12)
    kept = torch.arange(12) < torch.tensor([[0], [12], [5]])
    for part in (Nystrom(4), Nystrom(4, exact=True), Nystrom(20), Nystrom(4, kernel=3)):
        params = {"conv": {"weight": torch.ones(H, 1, 3, 1, dtype=torch.float64)}} if part.kernel else {}
        f = lambda q, k, v: part.apply(params, q, k, v, kept)
        agree(f(q, k, v)[0], torch.zeros_like(q[0]), 0.0)
        slopes = func.grad(lambda *x: f(*x).square().sum(), (0, 1, 2))(q, k, v)
        assert all(s.isfinite().all() and not s[0].any() for s in slopes)


def test_autocast_rounds_what_comes_in_and_what_goes_out() -> None:
    x = tuple(t.bfloat16() for t in draw(16, 16, 16))
    want = Nystrom(4).apply({}, *(t.double() for t in x))
    with torch.autocast("cpu", torch.bfloat16):
        y = Nystrom(4).apply({}, *(t.float() for t in x))
    assert y.dtype == torch.bfloat16
    agree(y, want, torch.finfo(y.dtype).eps)


def test_every_head_has_a_convolution() -> None:
    q, k, v = draw(10, 10, 10)
    part = Nystrom(4, kernel=5)
    params = part.init(random.key(1), Dims(model=8, heads=H))
    theirs = torch.nn.Conv2d(H, H, (5, 1), padding=(2, 0), groups=H, bias=False, dtype=torch.float64)
    assert params["conv"]["weight"].shape == theirs.weight.shape
    weight = theirs.weight.detach()
    want = theirs(v.transpose(1, 2)).transpose(1, 2).detach()
    got = part.apply({"conv": {"weight": weight}}, q, k, v)
    agree(got, replace(part, kernel=None).apply({}, q, k, v) + want)
    with pytest.raises(ShapeError, match="adds a convolution of v to the result, but M=8 is not N=10"):
        part.apply({"conv": {"weight": weight}}, q[:, :8], k, v)
    with pytest.raises(ValueError, match="kernel=4 would change the length: it must be odd"):
        Nystrom(kernel=4)


def test_segments_of_two_lengths() -> None:
    x = torch.arange(11.0).reshape(11, 1, 1)
    assert means(x, 4).flatten().tolist() == [0.5, 3.0, 6.0, 9.0]
