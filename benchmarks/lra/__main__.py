"""``python -m benchmarks.lra --task listops --attention nystrom,linformer,dot_product --steps 500``: attentions on
long-range tasks, trained, tested, and set side by side.

What was left off goes on where it was; a run that is finished is only told. The suite is LRA-like, not comparable with
published LRA.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.lra import cluster, table, train
from benchmarks.lra.model import model, pads
from benchmarks.lra.settings import ALL, FILE, SHORT, Settings, named, read
from benchmarks.lra.tasks import TASKS
from xfn.parts import catalogue

FOLDER = Path(__file__).parents[2] / "build" / "lra"


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lra", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--task", default="all", help=f"between commas: {', '.join([*TASKS, *SHORT])}; or all")
    parser.add_argument("--attention", default="dot_product", help="parts by their names, between commas; or all")
    parser.add_argument("--steps", type=int, metavar="N", help="updates, instead of the settings'")
    parser.add_argument("--quick", action="store_true", help="short sequences and few steps: a smoke test")
    parser.add_argument("--config", type=Path, default=FILE, metavar="JSON", help="settings like settings.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, metavar="DIR", help="of checkpoints; by default under build/lra")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch, on a CPU")
    parser.add_argument("--fetch", type=Path, metavar="DIR", help="print the table of what a directory holds, and stop")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the table there, as Markdown and JSON")
    parser.add_argument("--slurm", action="store_true", help="send every run to SLURM, and stop")
    parser.add_argument("--slurm-options", type=json.loads, default={}, metavar="JSON", help="for submitit's executor")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    asked = arguments(given)
    command = f"python -m benchmarks.lra {shlex.join(sys.argv[1:] if given is None else given)}"
    if asked.fetch:
        return told(asked.fetch, command, asked.out)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    folder = asked.directory or FOLDER / ("quick" if asked.quick else "whole")
    options = {"quick": asked.quick, "file": asked.config, "steps": asked.steps, "seed": asked.seed}
    runs: list[tuple[Settings, Path]] = []
    failed = False
    for task in named(asked.task, ALL):
        for attention in named(asked.attention, sorted(catalogue("attention"))):
            try:
                settings = read(task, attention, **options)
                model(settings)
            except (KeyError, TypeError, ValueError) as error:
                print(f"{task}, {attention}: {error.args[0]}")
                failed = True
            else:
                runs.append((settings, folder / settings.task / attention))
    if asked.slurm:
        try:
            jobs = cluster.submit(runs, folder / "slurm", asked.slurm_options, asked.device)
        except ImportError as error:
            print(error)
            return 2
        print(f"sent {', '.join(jobs)}; then: python -m benchmarks.lra --fetch {shlex.quote(str(folder))}")
        return int(failed)
    for settings, own in runs:
        failed |= not finishes(settings, own, asked.device)
    return max(int(failed), told(folder, command, asked.out))


def finishes(settings: Settings, folder: Path, device: str) -> bool:
    """Whether a run came to its end; why not is printed."""
    try:
        summary = train.run(settings, folder, device=device)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        print(f"{settings.task}, {settings.attention}: {error}")
        return False
    assert summary is not None
    sees = "" if pads(settings) else "; it sees padding, for it takes no mask"
    print(
        f"  accuracy {summary['test_accu_mean']:.1%}, loss {summary['test_loss_mean']:.3f} on the test{sees}",
        flush=True,
    )
    return True


def told(folder: Path, command: str, out: Path | None) -> int:
    """Prints the table; 1 where there is none."""
    found = table.summaries(folder)
    if not found:
        print(f"{folder} holds no finished run")
        return 1
    print("\n".join([*table.table(found), f"{table.NOTE}; accuracy on the test, in percent"]))
    for path in table.write(found, command, out) if out else ():
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
