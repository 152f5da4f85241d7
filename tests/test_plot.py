"""Pictures show what is there, are the same each time, and nothing draws before it is asked to."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from examples import sparse_patterns as example
from xfn import ShapeError, bias, patterns, plot
from xfn.layout import Layout


def test_each_kind_is_a_square_per_head() -> None:
    causal = torch.where(patterns.causal_1d(4), 1.0, -torch.inf)
    assert torch.equal(plot.matrix(patterns.causal_1d(4)), causal[None])
    assert torch.equal(plot.matrix(bias.causal(), 4), torch.where(causal == 1, 0, causal)[None])
    assert plot.matrix(bias.alibi(patterns.alibi_slopes(3)), 4, 5).shape == (3, 4, 5)
    likely = patterns.local_2d_gaussian(2, 2)
    assert torch.equal(plot.matrix(likely), likely[None])
    assert plot.matrix(Layout(patterns.causal_1d(3), 8, (20, 24))).shape == (1, 20, 24)
    assert plot.matrix(torch.ones(2, 2, dtype=torch.float16, requires_grad=True)).dtype == torch.float32


@pytest.mark.parametrize(
    "seen", [None, bias.causal(), bias.dense(torch.zeros(5, 7).bool())], ids=["all", "past", "none"]
)
def test_weights_are_those_of_a_softmax(seen: bias.Bias | None) -> None:
    q, k = (torch.randn(2, n, h, 3, dtype=torch.float64) for n, h in ((5, 4), (7, 2)))
    logits = torch.einsum("bmhk,bnhk->bhmn", q, k.repeat_interleave(2, -2)) * 0.3
    logits = logits if seen is None else logits + seen.materialize(5, 7)
    got = plot.weights(q, k, seen, scale=0.3)
    torch.testing.assert_close(got, logits.softmax(-1).nan_to_num(0.0))
    assert plot.draw(got[0], title="weights").axes
    with pytest.raises(ShapeError, match=r"k \[\.\.\., N, G, K\] has shape \[3, 4\]"):
        plot.weights(q, torch.ones(3, 4))


def test_a_picture_has_the_numbers() -> None:
    mask = patterns.alibi(6, 2, 0.2)
    figure = plot.draw(mask, title="near", query=4, grid=(2, 3))
    assert [axes.get_title() for axes in figure.axes] == ["near head 0", "query 4", "near head 1", "query 4"]
    for h in (0, 1):
        whole, one = (torch.as_tensor(axes.images[0].get_array()) for axes in figure.axes[2 * h : 2 * h + 2])
        assert torch.equal(whole == 1, mask[h])
        assert torch.equal(one == 1, mask[h, 4].reshape(2, 3))
        assert torch.equal(torch.as_tensor(figure.axes[2 * h + 1].lines[0].get_xydata()), torch.ones(1, 2).double())


def test_what_varies_has_a_scale_and_tiles_are_ruled() -> None:
    assert len(plot.draw(bias.alibi(torch.tensor([0.5])), 8).axes) == 2
    assert len(plot.draw(bias.causal(), 8).axes) == 1
    assert len(plot.draw(torch.zeros(3, 3).bool()).axes) == 1
    ruled = plot.draw(Layout(torch.eye(3).bool(), 8)).axes[0]
    assert ruled.get_xticks(minor=True).tolist() == [-0.5, 7.5, 15.5]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_file_has_the_same_bytes_each_time(ending: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        plot.save(plot.draw(patterns.axial_2d(3, 4), query=2, grid=(3, 4)), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_pictures_of_the_docs_are_those_of_the_script(tmp_path: Path) -> None:
    example.draw(tmp_path)
    written = sorted(tmp_path.iterdir())
    kept = Path(__file__).parent.parent / "docs" / "pictures"
    assert [path.name for path in written] == sorted(f"{name}_pattern.svg" for name in example.masks())
    assert {path.name for path in written} == {path.name for path in kept.glob("*_pattern.svg")}
    assert all(path.read_text().startswith("<?xml") for path in written)


def test_nothing_is_imported_before_a_picture_is_drawn() -> None:
    code = "import sys; from xfn import plot; plot.matrix; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_matplotlib_is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=re.escape("pip install xfn[plot]")):
        plot.draw(patterns.causal_1d(3))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: plot.draw(bias.causal()), TypeError, "a bias has no lengths of its own"),
        (lambda: plot.draw("causal"), TypeError, "but got str"),
        (lambda: plot.draw(torch.ones(3)), ShapeError, "but got [3]"),
        (lambda: plot.draw(torch.ones(2, 2, 3, 3)), ShapeError, "choose one example"),
        (lambda: plot.draw(torch.ones(6, 6), query=1), TypeError, "go together"),
        (lambda: plot.draw(torch.ones(6, 6), grid=(2, 3)), TypeError, "go together"),
        (lambda: plot.draw(torch.ones(6, 6), query=1, grid=(2, 2)), ShapeError, "2 × 2 does not hold the N=6 keys"),
        (lambda: plot.draw(torch.ones(6, 6), query=6, grid=(2, 3)), IndexError, "out of bounds"),
    ],
)
def test_what_is_refused(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        call()
