"""``python -m xfn.info`` says what there is, and tests it."""

from typing import Any

import pytest

from xfn import info
from xfn._core.dispatch import module


def test_every_backend_that_runs_here_is_tested(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main() == 0
    said = capsys.readouterr().out
    assert all(f"{primitive.name}, tried in this order" in said for primitive, _ in info.primitives())
    for primitive, cases in info.primitives():
        taken = [info.failures(backend, primitive, cases, "cpu") for backend in primitive.backends]
        assert max(count for count, _ in taken) == sum("long" not in case.tags for case in cases)


@pytest.mark.parametrize("spoilt", [lambda t: t * 1.001, lambda t: t * float("nan")], ids=["off", "nan"])
@pytest.mark.parametrize("member", ["forward", "backward"])
def test_a_kernel_that_is_wrong_is_named(
    member: str, spoilt: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = module("tiled", "attention")
    right = getattr(kernels, member)
    wrong = lambda *args, **options: [None if t is None else spoilt(t) for t in right(*args, **options)]
    monkeypatch.setattr(kernels, member, wrong)
    assert info.main() == 1
    said = capsys.readouterr().out.partition("WRONG")[2]
    assert "attention, plain, by tiled on cpu" in said
    assert "by cpu on cpu" not in said
