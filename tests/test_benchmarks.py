"""The program that measures on a GPU runs to its end on a CPU, every row of it, and leaves what it found; those that
measure for a page measure what is on it; the tables of the CPU are measured, weighed, written, and set beside earlier
ones, where a regression is found."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import xfn
from benchmarks import compare, gpu, gpu_rows, howto, machine, memory, run
from benchmarks.gpu_calls import Where


def test_it_runs_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "attention-dry.json").read_text())
    rows = list(gpu_rows.rows(Where("cpu", dry=True)))
    assert [row["name"] for row in data["rows"]] == [row.name for row in rows]
    for row, found in zip(rows, data["rows"], strict=True):
        assert not found["note"], found
        assert found["bytes"] is not None if row.memory else found["times"]["xfn"]["seconds"]
        aimed = {verdict["of"]: verdict["value"] for verdict in found["verdicts"]}
        assert set(aimed) == {aim.of for aim in row.aims}
        for of, value in aimed.items():
            peer = found["times"].get(of)
            assert value is not None or peer["note"], f"{row.name}: nobody says why there is no {of}"
    page = (tmp_path / "attention-dry.md").read_text()
    assert "dry run" in page
    assert all(row.name in page for row in rows)
    assert re.search(r"^8 of 8|[*]8 of 8 calls are right", page)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(data["checks"]) + len(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert capsys.readouterr().out == "there is no GPU here that torch can use: --dry runs the same on a CPU\n"


def test_a_kernel_that_is_wrong_fails_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = xfn.attention_with_lse

    def wrong(*x: torch.Tensor | None, backend: str | None = None) -> tuple[torch.Tensor, ...]:
        out, lse = right(*x, backend=backend)
        return out if backend else out * 1.1, lse

    monkeypatch.setattr(xfn, "attention_with_lse", wrong)
    assert gpu.main(["--dry", "--only", "nothing", "--out", str(tmp_path)]) == 1


def test_when_time_is_over_no_row_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "checked", lambda where: [])
    gpu.main(["--dry", "--only", "dense", "--minutes", "0", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "attention-dry.json").read_text())["rows"]
    assert rows
    assert all("minutes are over" in row["note"] for row in rows)


@pytest.mark.parametrize("page", howto.PAGES)
def test_a_page_has_the_costs_that_are_measured(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    howto.main([page, "--quick"])
    named = lambda text: re.findall(r"^\| (\S[^|]*) \| [\d.,]+ \| [\d.,]+ \|$", re.sub(r"\d+(?=%| m)", "#", text), re.M)
    rows = named(capsys.readouterr().out)
    assert rows
    assert rows == named((howto.HOWTO / f"{page}.md").read_text())


def test_memory_by_length_is_measured_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--quick", "--into", str(tmp_path / "memory.svg")])
    assert (tmp_path / "memory.svg").stat().st_size
    rows = capsys.readouterr().out.splitlines()[2:]
    ours, by_hand = ([float(row.split("|")[-2]) for row in rows if name in row] for name in ("xfn", "by hand"))
    assert len(ours) == len(by_hand) == len(memory.USES)
    assert all(less < more for less, more in zip(ours, by_hand, strict=True))


# The tables of the CPU.

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
RUNS = {"transformer": "", "masks": "float32", "encoder": "dot_product|linformer|pooling"}
"""Of the tables that weigh memory, what is run here."""


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "matmul_limits", lambda: {"float32": 1e11, "bfloat16": 1e11})


@pytest.mark.parametrize("op", [*run.OPS, run.ALL])
def test_the_rows_of_a_table_have_names_of_their_own(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([op, "--list", "--quick"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names
    assert len(set(names)) == len(names)


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("op", RUNS)
def test_a_table_is_measured_weighed_and_written(op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [op, "--quick", "--only", RUNS[op], "--budget", "0.01", "--out", str(tmp_path)]
    assert run.main(given) == 0
    data = json.loads((tmp_path / f"{op}-cpu.json").read_text())
    page, said = (tmp_path / f"{op}-cpu.md").read_text(), capsys.readouterr().out
    for row in data["rows"]:
        assert row["name"] in page
        assert row["name"] in said
        assert row["peaks"]["xfn"] > 0
        assert row["ratio"]
        assert row["lighter"]
        ran = {name for name, time in row["times"].items() if not time["note"] or "one run" in time["note"]}
        assert ran == set(row["peaks"]) == set(row["times"]) - {"flex"}, row["times"]
        assert all(goal["value"] for goal in row["goals"])


@pytest.mark.usefixtures("quickly")
def test_both_encoders_learn_the_same_and_two_tables_say_so(tmp_path: Path) -> None:
    assert run.main(["transformer", "--quick", "--budget", "0.01", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "transformer-cpu.json").read_text())["rows"]
    assert row["told"]["xfn"] == row["told"]["torch"]
    first, last = map(float, re.findall(r"[0-9.]+", row["told"]["xfn"]))
    assert last < first
    page = (tmp_path / "transformer-cpu.md").read_text()
    for unit in ("s", "MiB"):
        cells = (
            r"\| Units: {} \| emb \d+ - heads 8 \|\n\|---\|---\|\n\| xfn \| [0-9.e+-]+ \|\n\| torch \| [0-9.e+-]+ \|"
        )
        assert re.search(cells.format(unit), page), unit


# What has changed.

Plant = Callable[[dict[str, Any]], Any]


def slow(row: dict[str, Any]) -> None:
    for number in ("seconds", "least"):
        row["times"]["xfn"][number] *= 1.8


def heavy(row: dict[str, Any]) -> None:
    row["peaks"]["xfn"] *= 2


def gone(row: dict[str, Any]) -> None:
    row["times"], row["unsupported"] = {}, "no more"


def nothing(row: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(("plant", "status"), [(slow, 1), (heavy, 1), (gone, 1), (nothing, 0)])
def test_a_planted_regression_is_found(
    plant: Plant, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine that is half as fast, one row has lost more than a tenth."""
    before = json.loads((DOCS / "attention-cpu.json").read_text())
    before["rows"] = [row for row in before["rows"] if "xfn" in row["times"]][:20]
    for row in before["rows"]:
        row["peaks"] = {"xfn": 1000}
    after = json.loads(json.dumps(before))
    for row in after["rows"]:
        for time in row["times"].values():
            time |= {number: 2 * time[number] for number in ("seconds", "least") if time[number]}
    plant(after["rows"][7])
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, data in zip(files, (before, after), strict=True):
        path.write_text(json.dumps(data))
    given = ["--compare", *map(str, files)]
    assert run.main([*given, "--fail-if-regression", "0.1"]) == status
    lost = [change.name for change in compare.changes(before, after) if change.lost(0.1)]
    assert lost == [after["rows"][7]["name"]] * status
    assert f"{status} of 20 rows slower" in capsys.readouterr().out
    assert run.main(given) == 0  # it is only told
    assert run.main(["--compare", str(files[1]), str(files[0]), "--fail-if-regression", "0.1"]) == 0 or plant is gone


def test_a_spread_excuses_as_much_and_no_more() -> None:
    """Medians that are 30 % apart, of times that spread by 20 % or by 2 %."""
    for least, lost in ((0.8, False), (0.98, True)):
        runs = [
            {"rows": [{"name": "a", "times": {"xfn": {"seconds": s, "least": s * least, "runs": 4}}}]} for s in (1, 1.3)
        ]
        (change,) = compare.changes(*runs)
        assert change.ratio == 1.3
        assert change.lost(0.1) == lost


@pytest.mark.usefixtures("quickly")
def test_a_run_is_set_beside_an_earlier_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["masks", "--quick", "--only", "mask of 10%", "--budget", "0.01", "--out", str(tmp_path)]
    assert run.main(given) == 0
    path = tmp_path / "masks-cpu.json"
    assert run.main([*given, "--compare", str(path), "--fail-if-regression", "9"]) == 0
    earlier = json.loads(path.read_text())
    for number in ("seconds", "least"):
        earlier["rows"][0]["times"]["xfn"][number] /= 100
    (tmp_path / "fast.json").write_text(json.dumps(earlier))
    assert run.main([*given, "--compare", str(tmp_path / "fast.json"), "--fail-if-regression", "9"]) == 1
    assert "1 of 1 rows slower" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given", [[], ["--compare", "a"], ["masks", "--fail-if-regression", "1"], ["masks", "--compare", "a", "b"]]
)
def test_what_cannot_be_compared_is_refused(given: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(given)
