"""Long-range tasks: labels are what an independent reader finds, batches follow from their keys, padding is not seen,
training goes on where it was left, and the command line leaves a summary and a table."""

import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.lra import table, train
from benchmarks.lra.__main__ import main
from benchmarks.lra.draws import Draws
from benchmarks.lra.model import model, pads
from benchmarks.lra.settings import FILE, Settings, read
from benchmarks.lra.tasks import TASKS, batch, documents, image, listops, pathfinder
from xfn import random
from xfn.parts import catalogue

KEY = random.key(3)
QUICK = {task: read(task, "dot_product", quick=True) for task in TASKS}
PATHS = [task for task in TASKS if task.startswith("pathfinder")]


def rows(task: str, B: int, *, whole: bool = False, test: bool = False) -> Iterator[tuple[list[list[int]], int]]:
    """The sequences of each example, without padding, and its label."""
    sizes = read(task, "dot_product") if whole else QUICK[task]
    made = batch(task, sizes, KEY, B, test=test)
    for ids, lengths, label in zip(made.ids, made.lengths, made.labels, strict=True):
        pairs = zip(ids.view(-1, sizes.length).tolist(), lengths.view(-1).tolist(), strict=True)
        yield [row[:n] for row, n in pairs], int(label)


# Labels.


def value(words: list[str], depth: int = 0) -> int:
    """Reads one expression off the front of a list, and says what it comes to."""
    word = words.pop(0)
    if word.isdigit():
        return int(word)
    assert depth < 10
    found = []
    while words[0] != "]":
        found.append(value(words, depth + 1))
    words.pop(0)
    assert 2 <= len(found) <= 10
    found.sort()
    middle = (found[(len(found) - 1) // 2] + found[len(found) // 2]) // 2
    return {"[MIN": found[0], "[MAX": found[-1], "[MED": middle, "[SM": sum(found) % 10}[word]


@pytest.mark.parametrize("whole", [False, True])
def test_listops_is_labelled_with_what_it_comes_to(whole: bool) -> None:
    names, labels, lengths = {i: word for word, i in listops.TOKENS.items()}, set(), []
    for (row,), label in rows("listops", 30 if whole else 200, whole=whole):
        words = [names[i] for i in row]
        assert value(words) == label
        assert not words, "one expression, and nothing behind it"
        labels.add(label)
        lengths.append(len(row))
    assert labels == set(range(10)) or whole
    least, most = (500, 2000) if whole else (15, 62)
    assert least <= min(lengths) < (least + most) / 2 < max(lengths) <= most


@pytest.mark.parametrize("depth", [1, 2, 3, 10])
def test_an_expression_has_any_length_that_its_depth_can_have(depth: int) -> None:
    for n in (1, *range(4, min(listops.longest(depth), 300) + 1, 1 if depth < 3 else 7)):
        words, found = listops.expression(Draws(random.fold_in(KEY, n)), n, depth)
        assert len(words) == n
        assert max(accumulate((word[0] == "[") - (word == "]") for word in words)) <= depth
        assert value(words) == found


def connected(lit: set[tuple[int, int]], start: tuple[int, int]) -> set[tuple[int, int]]:
    """All that is reached by steps of two pixels at most."""
    found, edge = {start}, [start]
    while edge:
        y, x = edge.pop()
        near = {p for p in lit - found if max(abs(p[0] - y), abs(p[1] - x)) <= 2}
        found |= near
        edge += near
    return found


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("task", PATHS)
def test_pathfinder_is_labelled_with_what_is_connected(task: str, whole: bool) -> None:
    labels = set()
    for (row,), label in rows(task, 40, whole=whole):
        side = math.isqrt(len(row))
        lit = {divmod(i, side) for i, token in enumerate(row) if token != pathfinder.BLACK}
        first, second = (divmod(i, side) for i, token in enumerate(row) if token == pathfinder.DOT)
        reached = connected(lit, first)
        assert label == (second in reached)
        assert len(reached) < len(lit), "there is more than one path"
        labels.add(label)
    assert labels == {0, 1}


def test_text_is_of_its_kind_and_a_test_of_documents_of_its_own() -> None:
    for test in (False, True):
        for (row,), label in rows("text", 40, test=test):
            text = bytes(i - 1 for i in row)
            assert text in documents.joined(bool(label), test)
            assert text not in documents.joined(not label, test)
    assert not set(documents.documents(True, True)) & set(documents.documents(True, False))


def test_a_pair_is_of_one_topic_where_its_label_says_so() -> None:
    def of(row: list[int]) -> set[str]:
        extract = bytes(i - 1 for i in row)
        return {name for name, text in topics.items() if extract in text.encode()}

    labels = set()
    for (first, second), label in rows("retrieval", 60):
        assert len(first) == len(second)
        assert bool(of(first) & of(second)) == label
        labels.add(label)
    assert labels == {0, 1}


def test_an_image_shows_the_digit_that_its_label_says() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, whose digits these are, is not installed")
    known = {tuple(map(tuple, picture)): label for test in (False, True) for picture, label in image.digits(test)}
    for (row,), label in rows("image", 30):
        seen = torch.tensor(row).view(16, 16)
        shown = {
            known.get(tuple(map(tuple, ((seen[y : y + 8 * z : z, x : x + 8 * z : z] - 1) // 15).tolist())))
            for z in (1, 2) for y in range(17 - 8 * z) for x in range(17 - 8 * z)
        }  # fmt: skip
        assert label in shown


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    image.digits.cache_clear()
    with pytest.raises(ImportError, match=re.escape("pip install xfn[lra]")):
        batch("image", QUICK["image"], KEY, 1)


# Keys.


@pytest.mark.parametrize("task", [task for task in TASKS if task != "image"])
def test_a_batch_follows_from_its_key(task: str) -> None:
    sizes = QUICK[task]
    made, again, more = (batch(task, sizes, KEY, B) for B in (3, 3, 5))
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    assert all(torch.equal(a, b[:3]) for a, b in zip(made, more, strict=True))
    for other in (batch(task, sizes, random.key(4), 3), batch(task, sizes, KEY, 3, test=True)):
        assert not torch.equal(made.ids, other.ids)
    assert int(made.ids.max()) < sizes.vocab - 1
    padding = torch.arange(sizes.length) >= made.lengths[..., None]
    assert torch.equal(made.ids == 0, padding)


def test_the_bits_are_the_same_on_every_machine() -> None:
    names = {i: word for word, i in listops.TOKENS.items()}
    ((row,), label) = next(rows("listops", 1))
    text = "[MIN 0 1 7 5 5 8 0 [MAX 1 [SM [SM 4 3 9 ] [MIN 1 6 0 8 8 ] [MIN 7 0 ] ] 0 2 ] ]"
    assert (" ".join(names[i] for i in row), label) == (text, 0)


# The model.


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("part", catalogue("attention"))
def test_padding_is_not_seen_by_an_attention_that_can_be_told(part: str, pool: str) -> None:
    settings = replace(read("listops", part, quick=True), pool=pool)
    init, apply = model(settings)
    params, given = init(KEY), batch("listops", settings, KEY, 4)
    padding = torch.arange(settings.length) >= given.lengths[..., None]
    changed = torch.where(padding, 7, given.ids)
    seen, other = (apply(params, ids, given.lengths)[0] for ids in (given.ids, changed))
    assert seen.shape == (4, 10)
    same = torch.allclose(seen, other, atol=1e-5)
    assert same == pads(settings) or (same and pool == "cls"), "what looks near by alone sees no padding from the front"
    shown = apply(params, torch.where(padding, given.ids, given.ids % 10 + 1), given.lengths)[0]
    assert not torch.allclose(seen, shown, atol=1e-5)


def test_settings_are_those_of_the_table() -> None:
    def cells(s: Settings) -> str:
        what = (s.length, s.width, s.heads, s.layers, s.vocab, s.classes, s.pool, s.multiplier, s.reversible)
        return " ".join(map(str, (*what, s.steps, s.batch, s.warmup, s.accumulate)))

    found = {task: cells(read(task, "dot_product")) for task in TASKS}
    paths = "1024 64 2 2 512 2 mean 2 True 62400 256 312 1"
    assert found == {
        "text": "4096 256 4 4 512 2 cls 4 False 20000 32 8000 1",
        "listops": "2048 64 2 2 32 10 mean 2 False 10000 32 1000 2",
        "retrieval": "4096 64 2 2 512 2 mean 2 True 30000 32 800 2",
        "image": "1024 64 2 2 512 10 mean 2 True 35000 256 175 1",
        **dict.fromkeys(PATHS, paths),
    }


# Training.


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Settings of a few steps."""
    tables = json.loads(FILE.read_text())
    tables["quick"]["common"] |= {"steps": 4, "warmup": 1, "batch": 4, "accumulate": 2, "tests": 6, "width": 16}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(tables))
    return path


@pytest.mark.parametrize(("task", "part"), [("retrieval", "dot_product"), ("listops", "favor")])
def test_training_goes_on_where_it_was_left(task: str, part: str, small: Path, tmp_path: Path) -> None:
    settings = read(task, part, quick=True, file=small)
    at_once = train.run(settings, tmp_path / "once")
    assert train.run(settings, tmp_path / "twice", stop=2) is None
    resumed = train.run(settings, tmp_path / "twice")
    assert at_once is not None
    assert resumed is not None
    for number in ("test_accu_mean", "test_loss_mean", "train_loss", "train_step_idx", "num_parameter"):
        assert resumed[number] == at_once[number], number
    with pytest.raises(ValueError, match="holds a run of seed=0, but this one has 1"):
        train.run(replace(settings, seed=1), tmp_path / "twice")


def test_the_command_line_trains_tests_and_tells(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--quick", "--config", str(small), "--directory", str(tmp_path / "runs"), "--steps", "2"]
    given += ["--task", "listops,pathfinder", "--attention", "dot_product,pooling"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    found = table.summaries(tmp_path / "runs")
    assert len(found) == 4
    for each in found:
        assert 0 <= each["test_accu_mean"] <= 1
        assert each["test_loss_mean"] > 0
        assert each["train_step_idx"] == 2
    head, _, *body = (line for line in said.splitlines() if line.startswith("|"))
    assert head == "| attention | listops | pathfinder | AVG |"
    assert body[-1] == "| *chance* | 10.0 | 50.0 | 30.0 |"
    for line in body:
        first, second, average = map(float, re.findall(r"\d+\.\d", line))
        assert abs((first + second) / 2 - average) <= 0.11
    assert table.NOTE in said
    assert "sees padding" in said
    page = (tmp_path / "out" / "lra.md").read_text()
    assert all(line in page for line in body)
    assert len(json.loads((tmp_path / "out" / "lra.json").read_text())) == 4

    assert main(given) == 0
    assert capsys.readouterr().out.count("is finished") == 4
    assert main(["--fetch", str(tmp_path / "runs")]) == 0
    assert body == capsys.readouterr().out.splitlines()[2:-1]


def test_a_mean_is_of_all_tasks_or_none() -> None:
    def each(task: str, attention: str, accuracy: float) -> dict[str, Any]:
        return {"task": task, "attention": attention, "test_accu_mean": accuracy, "settings": {"classes": 2}}

    found = [each("text", "a", 0.5), each("retrieval", "a", 1.0), each("text", "b", 0.75)]
    assert table.table(found)[2:] == [
        "| a | 50.0 | 100.0 | 75.0 |",
        "| b | 75.0 | – | – |",
        "| *chance* | 50.0 | 50.0 | 50.0 |",
    ]


@pytest.mark.parametrize(
    ("task", "attention", "said"),
    [
        ("chess", "dot_product", "no task is called 'chess'"),
        ("listops", "attention", "no part is called 'attention'"),
        ("listops", "blocksparse", "blocksparse has no"),
    ],
)
def test_what_cannot_be_is_said(
    task: str, attention: str, said: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = json.loads(small.read_text())
    tables["quick"]["attention"]["blocksparse"] = {"rank": 2}
    small.write_text(json.dumps(tables))
    given = ["--quick", "--config", str(small), "--directory", str(tmp_path), "--task", task, "--attention", attention]
    assert main(given) == 1
    assert said in capsys.readouterr().out


# SLURM.


class Cluster:
    """Stands for submitit: what is sent to it, it does at once."""

    def __init__(self, folder: str) -> None:
        self.options: dict[str, Any] = {}

    def update_parameters(self, **options: Any) -> None:
        self.options |= options

    def batch(self) -> Any:
        return nullcontext()

    def submit(self, f: Any, *args: Any, **options: Any) -> Any:
        assert self.options == {"timeout_min": 5}
        assert f(*args, **options)["train_step_idx"] == 1
        return SimpleNamespace(job_id=17)


def test_runs_are_sent_to_slurm(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--quick", "--config", str(small), "--directory", str(tmp_path), "--steps", "1", "--task", "listops"]
    given += ["--slurm", "--slurm-options", '{"timeout_min": 5}']
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(given) == 2
    assert "pip install xfn[slurm]" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Cluster))
    assert main(given) == 0
    assert "sent 17; then: python -m benchmarks.lra --fetch" in capsys.readouterr().out
    assert len(table.summaries(tmp_path)) == 1
