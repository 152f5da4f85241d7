"""Runs as jobs of SLURM, by way of submitit."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lra import train
from benchmarks.lra.settings import Settings


def submit(every: Sequence[tuple[Settings, Path]], logs: Path, options: dict[str, Any], device: str) -> list[str]:
    """One job for each run; a job that is sent again goes on from the checkpoint.

    Args:
        every: settings, and the folder of each.
        logs: where jobs write what they say.
        options: of submitit's executor, as ``timeout_min`` and ``slurm_partition``.

    Returns:
        The jobs' ids.

    Raises:
        ImportError: submitit is not installed.
    """
    try:
        submitit: Any = importlib.import_module("submitit")
    except ImportError as error:
        raise ImportError("--slurm sends jobs by submitit, which is not installed: pip install xfn[slurm]") from error
    executor = submitit.AutoExecutor(folder=str(logs))
    executor.update_parameters(**options)
    with executor.batch():
        jobs = [executor.submit(train.run, settings, folder.resolve(), device=device) for settings, folder in every]
    return [str(job.job_id) for job in jobs]
