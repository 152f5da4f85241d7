"""How long a call takes, and how much memory it holds at its worst."""

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

MIB = 2**20


def peak_bytes(f: Callable[[], Any], device: str = "cpu") -> int:
    """The most bytes that ``f`` has allocated at one time on a device, as torch's allocator reports them, beyond what
    was held before and what its result holds."""
    if device == "cpu":
        os.environ["KINETO_LOG_LEVEL"] = "6"  # the profiler is not to say that it begins and ends
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
            result = f()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = top = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            top = max(top, held)
    else:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = f()
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated() - before
        top = torch.cuda.max_memory_allocated() - before
    del result
    return top - held


def median_seconds(*fs: Callable[[], Any], repeats: int = 5, device: str = "cpu") -> list[float]:
    """The median wall time of each function, all of them interleaved in one process."""
    times: list[list[float]] = [[] for _ in fs]
    for _ in range(repeats):
        for f, taken in zip(fs, times, strict=True):
            start = time.perf_counter()
            f()
            if device != "cpu":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def interleaved(
    fs: Sequence[Callable[[], Any]], clock: Callable[[], float], rounds: int, calls: Sequence[int]
) -> list[list[float]]:
    """The seconds of one call of each function, round after round, each in an order of its own: what follows a call
    that has emptied the caches and given much memory back takes longer, so no function may always follow another.

    Args:
        clock: ``time.thread_time`` for the CPU time of the calling thread, which other processes barely touch;
            ``time.perf_counter`` for wall time.
        rounds: how many samples of each function.
        calls: how many calls of each function make a sample, for those that are too short to time alone.
    """
    samples: list[list[float]] = [[] for _ in fs]
    for turn in range(rounds):
        for i in random.Random(turn).sample(range(len(fs)), len(fs)):
            start = clock()
            for _ in range(calls[i]):
                fs[i]()
            samples[i].append((clock() - start) / calls[i])
    return samples
