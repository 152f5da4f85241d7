"""The program that measures on a GPU runs to its end on a CPU, every row of it, and leaves what it found; those that
measure for a page measure what is on it."""

import json
import re
from pathlib import Path

import pytest
import torch

import xfn
from benchmarks import gpu, gpu_rows, howto, memory
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


def test_when_time_is_over_no_row_is_begun(tmp_path: Path) -> None:
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
