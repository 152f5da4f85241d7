"""The grid: six sizes, dense and causal, in every dtype, forward and with backward."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch

from benchmarks.attention import peers
from benchmarks.attention.goals import goals
from benchmarks.attention.problem import BOTH, DTYPES, FORWARD, Settings, both, forward, plain, tensors, turned
from benchmarks.contest import Call, Contest, Row
from benchmarks.machine import name

SIZES = ((2, 8, 512, 64), (2, 8, 2048, 64), (1, 8, 4096, 64), (1, 16, 1024, 128), (64, 4, 128, 32), (256, 4, 64, 32))


def rows(settings: Settings) -> Iterator[Row]:
    for what, dtype, size, mask in product((FORWARD, BOTH), DTYPES, SIZES, ("dense", "causal")):
        B, H, S, D = size
        if settings.quick and S > 1024:
            continue
        work = flops(what, *size, causal=mask == "causal")
        make = partial(contest, settings, what, dtype, size, causal=mask == "causal")
        title = f"{what} {name(dtype)} {mask} {B}x{H}x{S}x{D}"
        yield Row(what, title, make, dtype, work, goals(what, name(dtype), mask, S, D))


def flops(what: str, B: int, H: int, S: int, D: int, *, causal: bool) -> float:
    """Forward is two products; backward is five."""
    return 4.0 * B * H * S * S * D * (1.0 if what == FORWARD else 3.5) * (0.5 if causal else 1.0)


def contest(
    settings: Settings, what: str, dtype: torch.dtype, size: tuple[int, int, int, int], *, causal: bool
) -> Contest:
    ts = tensors(*size, dtype)
    beside = {}
    if dtype == torch.float16:  # for the record: torch's float16 is slower than a round trip to float32
        sdpa, (*theirs, d) = peers.as_float32(peers.sdpa(causal=causal)), turned(ts)
        beside["sdpa as float32"] = Call(forward(sdpa, theirs) if what == FORWARD else both(sdpa, theirs, d), 3)
    form = plain(settings, size[2], dtype, causal=causal, work=flops(what, *size, causal=False))
    return form.contest(what, ts, beside=beside)
