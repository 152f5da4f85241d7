"""Every test starts from the same seed, on one thread a worker, and without compiled code of an earlier run.

AOTAutograd's cache does not see the rules of a custom op, so an edited rule would be tested as it was before.

``-m gpu`` runs what is marked so on a GPU, and skips it where there is none. ``--brief`` runs a choice of what is asked
of every kernel.
"""

import os
from collections.abc import Iterator

import pytest
import torch
import torch._functorch.config

from . import brief, device

torch._functorch.config.enable_autograd_cache = False
torch.set_num_threads(1)


def asked_for(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "gpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--brief", action="store_true", help="a choice of the tests: see tests/brief.py")


def pytest_configure(config: pytest.Config) -> None:
    if asked_for(config) and not device.why_not():
        device.settle(torch.device("cuda"))
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # with this, what cuBLAS sums has one order


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.brief:
        items[:], left = brief.chosen(items)
        config.hook.pytest_deselected(items=left)
    if asked_for(config) and (reason := device.why_not()):
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture
def turn(request: pytest.FixtureRequest) -> int | None:
    """Which turn of a law this is, where a choice was made: of what the law asks in a loop it may then choose, too."""
    return request.node.stash.get(brief.TURN, None)  # type: ignore[no-any-return]


@pytest.fixture
def poisoned() -> Iterator[None]:
    """``torch.empty`` gives NaN, so that an element which is never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=device.DEVICE.type == "cuda")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
