"""What this machine is and can do: its name, its limits, and how much of it others are using."""

import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from xfn import info


def matmul_limits() -> dict[str, float]:
    """The matmul limit of one thread by dtype, in operations per second of its CPU time.

    It is the fastest large product that torch has: a matmul, or in float32 a convolution, which goes to another
    library. A dtype that torch multiplies more slowly than float32 has the limit of float32, for a kernel can convert.
    """
    n, wide, area = 1024, 256, 62
    image, weight = torch.randn(1, wide, area + 2, area + 2), torch.randn(wide, wide, 3, 3)
    limits = {
        "float32": max(
            rate(matmul(n, torch.float32), 2 * n**3), rate(lambda: F.conv2d(image, weight), 2 * 9 * wide**2 * area**2)
        )
    }
    for dtype in (torch.bfloat16, torch.float16):
        first = rate(matmul(n // 4, dtype), 2 * (n // 4) ** 3)
        full = first if first < limits["float32"] / 4 else rate(matmul(n, dtype), 2 * n**3)
        limits[name(dtype)] = max(full, limits["float32"])
        limits[f"{name(dtype)} matmul"] = full
    return limits


def matmul(n: int, dtype: torch.dtype) -> Callable[[], Any]:
    a, b = torch.randn(2, n, n).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def rate(f: Callable[[], Any], work: float, repeats: int = 7) -> float:
    """Work per second of the calling thread's CPU time, at best."""
    f()
    taken = []
    for _ in range(repeats):
        start = time.thread_time()
        f()
        taken.append(time.thread_time() - start)
    return work / min(taken)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe() -> dict[str, Any]:
    """What the numbers were taken on, and when."""
    return {
        "cpu": model(),
        "cores": torch.multiprocessing.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "xfn": list(info.lines()),
    }


def model() -> str:
    """The processor, as Linux names it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in facts.items()}
    if "model name" not in known:
        return platform.machine()
    return f"{known['model name']}, family {known.get('cpu family', '?')} model {known.get('model', '?')}"


def commit() -> str:
    """The version of the working tree, as git names it."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def others_since() -> Callable[[], float | None]:
    """Begins to count; the result says how many cores other processes have kept busy since, where /proc tells."""
    wall, busy, own = time.perf_counter(), busy_seconds(), time.process_time()

    def others() -> float | None:
        now = busy_seconds()
        if busy is None or now is None:
            return None
        return max(0.0, (now - busy - (time.process_time() - own)) / (time.perf_counter() - wall))

    return others


def busy_seconds() -> float | None:
    """The CPU time that all processes have used, by Linux's count."""
    try:
        with open("/proc/stat") as stat:
            user, nice, system, _idle, _wait, *more = (int(n) / 100 for n in stat.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return user + nice + system + sum(more)
