"""The table of what a directory holds: attentions by tasks, and their mean."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.lra.settings import SHORT
from benchmarks.lra.tasks import TASKS
from benchmarks.lra.train import SUMMARY

NOTE = "LRA-like, not comparable with published LRA"
AVG = "AVG"


def summaries(folder: Path) -> list[dict[str, Any]]:
    """What runs below a folder have left, wherever it is."""
    return [json.loads(path.read_text()) for path in sorted(folder.rglob(SUMMARY))]


def table(found: list[dict[str, Any]]) -> list[str]:
    """Accuracies in percent, as a table of Markdown; the mean is of those that have run every task."""
    tasks = [task for task in TASKS if any(each["task"] == task for each in found)]
    accuracies: dict[str, dict[str, float]] = {}
    for each in found:
        accuracies.setdefault(each["attention"], {})[each["task"]] = 100 * each["test_accu_mean"]
    short = {task: name for name, task in SHORT.items()}
    chance = {each["task"]: 100 / each["settings"]["classes"] for each in found}
    lines = [f"| attention | {' | '.join([*(short.get(task, task) for task in tasks), AVG])} |"]
    lines.append("|---|" + "---|" * (len(tasks) + 1))
    lines += [
        row(name, accuracies[name], tasks) for name in sorted(accuracies, key=lambda n: -mean(accuracies[n], tasks))
    ]
    return [*lines, row("*chance*", chance, tasks)]


def mean(accuracies: Mapping[str, float], tasks: list[str]) -> float:
    """Over all tasks, or −1 where one is missing."""
    return fmean(accuracies.values()) if len(accuracies) == len(tasks) else -1.0


def row(name: str, accuracies: Mapping[str, float], tasks: list[str]) -> str:
    cells = [f"{accuracies[task]:.1f}" if task in accuracies else "–" for task in tasks]
    average = mean(accuracies, tasks)
    return f"| {name} | {' | '.join(cells)} | {f'{average:.1f}' if average >= 0 else '–'} |"


def page(found: list[dict[str, Any]], command: str) -> Iterator[str]:
    about = found[-1]["machine"]
    yield "# Long-range tasks"
    yield ""
    yield f"{NOTE}: the data are made by generators, and of what comes with Python and scikit-learn."
    yield ""
    yield f"{about['cpu']}, {about['cores']} cores; torch {about['torch']}, Python {about['python']},"
    yield f"xfn {about['commit']}; {about['date']}. `{command}`"
    yield ""
    tests = " or ".join(map(str, sorted({each["settings"]["tests"] for each in found})))
    yield f"Accuracy in percent, on a test of {tests} examples. AVG is of attentions that have run every task."
    yield ""
    yield from table(found)
    yield ""
    yield "| task | attention | test loss | steps | length | parameters | minutes |"
    yield "|---|---|---|---|---|---|---|"
    for each in found:
        yield (
            f"| {each['task']} | {each['attention']} | {each['test_loss_mean']:.3f} | {each['train_step_idx']} | "
            f"{each['settings']['length']} | {each['num_parameter']} | {each['seconds'] / 60:.1f} |"
        )


def write(found: list[dict[str, Any]], command: str, folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(found, indent=1)), (".md", "\n".join(page(found, command)))):
        path = (folder / "lra").with_suffix(suffix)
        path.write_text(text + "\n", encoding="utf-8")
        yield path
