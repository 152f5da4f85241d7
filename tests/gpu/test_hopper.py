"""Attention's kernel for Hopper, as far as it can be asked without one.

Its source runs on the machine of ``groups.py``, and what it computes is held against the reference; compiled, it keeps
its numbers in registers, its products do not wait, and weights are found beside them; its tensors are such as the
hardware can fetch; and only the calls that it is for take it.
"""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xfn.ops.attention import reference

from ..cases import error

compiler = pytest.importorskip("tests.gpu.compiler", reason="triton is not installed")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton interprets here")
if os.environ.get("TRITON_INTERPRET") != "1":
    import triton
    from triton.backends.nvidia import driver as nvidia
    from triton.experimental.gluon.language.nvidia import hopper as hardware
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
    from triton.runtime import driver

    from xfn.kernels.triton import _tile, attention
    from xfn.kernels.triton.attention import config, hopper, walk
    from xfn.kernels.triton.attention.launch import Launch

    from .groups import Machine

Bounds = Callable[[Tensor, int], tuple[Tensor | None, Tensor | None]]
BOUNDS: dict[str, Bounds] = {
    "dense": lambda m, N: (None, None),
    "causal": lambda m, N: (None, (m + 1).clamp(0, N)),
    "late": lambda m, N: ((2 * m - 70).clamp(0, N), None),
    "window": lambda m, N: ((m - 150).clamp(0, N), (m + 40).clamp(0, N)),
    "wide": lambda m, N: ((m - 400).clamp(0, N), (m + 300).clamp(0, N)),
    "documents": lambda m, N: (m // 90 * 90, (m // 90 * 90 + 90).clamp(0, N)),
    "examples": lambda m, N: (torch.stack((m % 7, m // 2)), torch.stack((m + N // 2, m * 3 - 200)).clamp(0, N)),
    "blind": lambda m, N: (m * 0, torch.where(m % 3 == 0, 0, m).clamp(0, N)),
}  # fmt: skip


class Problem:
    """A call: q, k, v and bounds."""

    def __init__(
        self, bounds: str = "dense", D: int = 64, dtype: torch.dtype = torch.bfloat16, M: int = 300, N: int = 700,
        H: int = 4, G: int = 2, V: int | None = None, scale: float = 0.125,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v = (
            torch.randn(2, *size).to(dtype) for size in ((M, H, D), (N, G, D), (N, G, V or D))
        )  # fmt: skip
        self.bounds = [t if t is None else t.int() for t in BOUNDS[bounds](torch.arange(M), N)]
        self.scale = scale

    @property
    def launch(self) -> "Launch":
        return Launch([self.q, self.k, self.v, None, None], [*self.bounds, *[None] * 10], 0.0, self.scale, 0.0)

    def run(self, machine: "Machine | None" = None) -> tuple[list[Tensor], list[Any]]:
        """out and lse, and what the launch that cleans is given."""
        again: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driver, "_active", compiler.Driver(90))
            patch.setattr(hopper, "attend", (machine or Machine())(hopper.attend))
            patch.setattr(Launch, "run", lambda self, *args, **how: again.extend(args))
            call = self.launch
            assert hopper.fits(call)
            y = [t.fill_(torch.nan) for t in call.outputs()]
            hopper.forward(call, call.pair(y))
        return y, again

    def wanted(self, dtype: torch.dtype) -> list[Tensor]:
        (q, k, v), (lo, hi) = (t.to(dtype) for t in (self.q, self.k, self.v)), self.bounds
        return list(reference(q, k, v, None, None, lo, hi, None, p=0.0, scale=self.scale))

    def holds(self, got: list[Tensor]) -> None:
        for mine, theirs, right in zip(got, self.wanted(self.q.dtype), self.wanted(torch.float64), strict=True):
            assert ((mine == -torch.inf) == (right == -torch.inf)).all()
            mine, theirs, right = (t.where(right != -torch.inf, 0) for t in (mine, theirs, right))
            assert error(mine, right) <= 3 * error(theirs, right) + 2 * torch.finfo(mine.dtype).eps


# What it computes.


@pytest.mark.turns("late", "bounds")
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize(("D", "dtype"), [(64, torch.bfloat16), (128, torch.float16)], ids=str)
@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
def test_it_equals_the_reference(bounds: str, D: int, dtype: torch.dtype, late: bool) -> None:
    problem = Problem(bounds, D, dtype)
    problem.holds(problem.run(Machine(late))[0])


SIZES: dict[str, dict[str, int]] = {
    "a query": {"M": 1, "N": 1000}, "a key": {"N": 1}, "a tile": {"M": 128, "N": 128}, "no edge": {"M": 256, "N": 512},
    "a head": {"H": 1, "G": 1}, "one key head": {"H": 3, "G": 1}, "40 and 56 features": {"D": 40, "V": 56},
    "72 and 120 features": {"D": 72, "V": 120},
}  # fmt: skip


@pytest.mark.parametrize("bounds", ["dense", "window"])
@pytest.mark.parametrize("size", SIZES)
def test_lengths_heads_and_features(size: str, bounds: str) -> None:
    problem = Problem(bounds, **SIZES[size])
    problem.holds(problem.run()[0])


def test_rows_may_lie_anywhere() -> None:
    """What examples share is fetched once more; heads before rows, and parts of wider rows."""
    problem = Problem("examples", M=150, N=200)
    own = problem.run()[0]
    problem.q = problem.q.transpose(1, 2).contiguous().transpose(1, 2)
    problem.v = torch.cat((problem.k, problem.v), -1)[..., 64:]
    assert all(torch.equal(a, b) for a, b in zip(problem.run()[0], own, strict=True))
    problem.k = problem.k[:1].expand(2, -1, -1, -1)
    problem.v = problem.v[0]
    problem.holds(problem.run()[0])


@pytest.mark.parametrize("bounds", ["dense", "causal", "window", "documents"])
def test_what_is_compared_with_nothing_is_seen_whole(bounds: str) -> None:
    """And what is passed over by none: the tiles, by brute force."""
    rows, N, BN = torch.arange(300), 700, 128
    lo, hi = (
        t if t is not None else whole
        for t, whole in zip(BOUNDS[bounds](rows, N), (rows * 0, rows * 0 + N), strict=True)
    )
    sees = (torch.arange(N) >= lo[:, None]) & (torch.arange(N) < hi[:, None])
    aligned = Machine().python(walk.aligned)
    for m0 in range(0, 300, 128):
        part = sees[m0 : m0 + 128]
        low, late, early = lo[m0 : m0 + 128].min(), lo[m0 : m0 + 128].max(), hi[m0 : m0 + 128].min()
        least, first, last = aligned(low, late, early, BN)
        assert not part[:, :least].any()
        assert least <= first <= last
        whole = [n0 for n0 in range(0, N - BN + 1, BN) if part[:, n0 : n0 + BN].all()]
        assert whole == list(range(first, last, BN))


def test_tiles_that_are_not_finite_run_again() -> None:
    """In the places of the kernel of all devices, whose tiles have as many queries."""
    problem = Problem("causal", M=400, N=400, H=1, G=1)
    problem.v[1, 300:] = torch.nan
    (out, _), (kernel, tiles, shape, *_, flags) = problem.run()
    lost = [[~out[b, m : m + 128].isfinite().all() for b in range(2)] for m in range(0, 400, 128)]
    order = [Machine().python(_tile.turn)(torch.tensor(pid), 4, 2) for pid in range(8)]
    assert (kernel.__name__, tiles, shape["BM"], len(flags)) == ("forward", 8, 128, 8)
    assert [bool(f) for f in flags] == [bool(lost[i_m][i_b]) for i_m, i_b in order]
    assert [row[1].item() for row in lost] == [False, False, True, True]


def planted(what: str) -> "Machine":
    """A machine on which the kernel is wrong in one way."""
    machine = Machine()
    barriers, products = (machine.names[m] for m in (hardware.mbarrier, hardware))
    init, wait, arrive, halt = barriers.init, barriers.wait, barriers.arrive, products.warpgroup_mma_wait
    if what == "a tile is given back by one group":
        given: set[Any] = set()

        def soon(barrier: Any, count: int) -> None:
            if barrier not in given:
                arrive(barrier, 2 * count)
            given.symmetric_difference_update({barrier})

        barriers.arrive = soon
    elif what == "a tile is never given back":
        barriers.init = lambda barrier, count: init(barrier, count if count == 1 else 3)
    elif what == "a tile is used before it came":
        barriers.wait = lambda barrier, phase: wait(barrier, phase) if barrier.count == 2 else None
    elif what == "a product is used before it is made":
        products.warpgroup_mma_wait = lambda left, deps: halt(max(left, 1), deps)
    return machine


@pytest.mark.parametrize(
    ("what", "found"),
    {
        "a tile is given back by one group": "assert inf|all wait",
        "a tile is never given back": "all wait for one another",
        "a tile is used before it came": "assert inf|all wait",
        "a product is used before it is made": "NoneType",
    }.items(),
)
def test_the_machine_finds_what_is_wrong(what: str, found: str) -> None:
    problem = Problem(N=100 if "before it came" in what else 1500, M=100, H=1, G=1)
    with pytest.raises(AssertionError, match=found):
        problem.holds(problem.run(planted(what))[0])


# What becomes of it.


def code(kernel: Any, folder: Path) -> str:
    """The instructions of a kernel."""
    (folder / "kernel").write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return subprocess.run([tool, "-c", folder / "kernel"], capture_output=True, text=True, check=True).stdout


class Maps:
    """Takes the descriptions of tensors that a driver would encode, and asks of them what it would."""

    def fill_tma_descriptor(
        self, data: int, swizzle: int, size: int, _: int, box: list[int], shape: list[int], strides: list[int], pad: int
    ) -> str:  # fmt: skip
        assert data % 16 == 0
        assert len(box) == len(shape) == len(strides) == 5
        assert all(0 < side <= 256 for side in box)
        assert box[-1] * size == 128
        assert swizzle == 3, "128 bytes"
        assert all(0 < length < 2**32 for length in shape)
        assert all(0 < step * size < 2**40 and step * size % 16 == 0 for step in strides[:-1])
        assert strides[-1] == 1
        return "map"


SHIPS = [
    pytest.param(
        dtype, D, bounds, marks=[] if dtype == torch.bfloat16 and bounds in ("dense", "window") else [pytest.mark.whole]
    )
    for dtype in (torch.bfloat16, torch.float16)
    for D in (64, 128)
    for bounds in ("dense", "window", "causal", "late")
]


@pytest.mark.parametrize(("dtype", "D", "bounds"), SHIPS, ids=str)
def test_it_is_compiled_as_it_was_meant(
    dtype: torch.dtype, D: int, bounds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of note is spilt, all products are of groups of warps and none waits, two groups have the registers of
    twelve warps, and where nothing is compared all weights of a tile are found while values are multiplied."""
    problem, (BN, _) = Problem(bounds, D, dtype, M=1000, N=1000), config.RINGS[D]
    given: list[Any] = []
    attend = hopper.attend

    class Recorded:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            def launch(*args: Any, **constants: Any) -> None:
                given.extend((grid, args))
                attend[grid](*args, **constants)

            return launch

    with compiler.compiling(90, strict=False) as found:
        monkeypatch.setattr(hopper, "attend", Recorded())
        attention.forward(
            [problem.q, problem.k, problem.v, None, None], [*problem.bounds, *[None] * 10], p=0.0, scale=0.1
        )
    (made,) = found
    assert made.name == "attend"
    assert not made.against(90, 8)
    assert not made.serial
    assert given[0] == (8 * 4 * 2,)
    said = code(made.kernel, tmp_path)
    assert len(re.findall(r"UTMALDG", said)) >= 4
    assert len(re.findall(r"UTMASTG", said)) == 2
    assert not re.search(r"\bHMMA\b", said)
    assert {"0xf0", "0x18"} <= set(re.findall(r"USETMAXREG\S* (?:UP\d, )?(0x\w+)", said))
    steps = re.findall(r"DEPBAR\.LE gsb0, 0x1 ;(.*?)DEPBAR\.LE gsb0, 0x0 ;", said, re.DOTALL)
    assert len(steps) == 2 * (2 + (problem.bounds[0] is not None))
    assert all(step.count("MUFU.EX2") >= BN // 2 for step in steps)

    monkeypatch.setattr(driver, "_active", compiler.Driver(90))
    monkeypatch.setattr(compiler.Driver, "utils", Maps(), raising=False)
    descriptors = [t for t in given[1] if isinstance(t, TensorDescriptor)]
    metas = made.kernel.metadata.tensordesc_meta
    sent = [nvidia.make_tensordesc_arg(t, meta) for t, meta in zip(descriptors, metas, strict=True)]
    assert [len(s) for s in sent] == [11] * 4


# Which calls take it.


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The kernel that a call takes on a device of some capability."""
    calls: list[str] = []
    monkeypatch.setattr(hopper, "forward", lambda *_: calls.append("hopper"))
    monkeypatch.setattr(Launch, "clean", lambda *_: calls.append("all"))

    def run(x: list[Tensor | None], c: list[Tensor | None], architecture: int = 90, scale: float = 1.0) -> str:
        monkeypatch.setattr(driver, "_active", compiler.Driver(architecture))
        attention.forward(x, c, p=0.0, scale=scale)
        return calls.pop()

    return run


def test_which_calls_take_it(taken: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    t = torch.zeros(2, 40, 2, 64, dtype=torch.bfloat16)
    none: list[Tensor | None] = [None] * 12
    lo, rest = torch.zeros(40, dtype=torch.int32), none[2:]
    x: list[Tensor | None] = [t, t, t, None, None]
    wide = torch.zeros(2, 40, 2, 128, dtype=torch.bfloat16)
    assert {taken(x, c) for c in (none, [lo, lo, *rest], [None, lo, *rest])} == {"hopper"}
    assert {taken(x, none, 90, scale) for scale in (0.0, -1.0)} == {"all"}
    assert {taken(x, none, architecture) for architecture in (75, 80, 86, 89, 100, 103, 120)} == {"all"}
    others: list[list[Tensor | None]] = [
        [t.float(), t.float(), t.float(), None, None],
        [t, t, t, torch.zeros(1, 40, 40), None],
        [t, t, t, None, torch.zeros(2)],
        [t, t, wide, None, None],
        [*[wide[..., :60].contiguous()] * 3, None, None],
        [*[t[..., :32].contiguous()] * 3, None, None],
        [*[torch.cat((wide, wide), -1)] * 3, None, None],
        [t, wide[..., 1:65], t, None, None],
        [t, t, t[:, :1].expand(2, 40, 2, 64), None, None],
    ]
    assert [taken(other, none) for other in others] == ["all"] * len(others)
    assert taken(x, [None, None, torch.zeros(2, dtype=torch.int64), *none[3:]]) == "all"
    monkeypatch.setattr(config, "HOPPER", False)
    assert taken(x, none) == "all"


@pytest.mark.parametrize("D", [64, 128])
def test_without_it_the_kernel_of_all_devices_is_taken(D: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it fits, as it ships where a call does not."""
    monkeypatch.setattr(config, "HOPPER", False)
    t = torch.zeros(2, 40, 2, D, dtype=torch.bfloat16)
    with compiler.compiling(90) as found:
        attention.forward([t, t, t, None, None], [None] * 12, p=0.0, scale=1.0)
    assert [k.name for k in found] == ["forward"]
    assert not found[0].against(90, 128)
