"""Every test starts from the same seed, on one thread a worker, and without compiled code of an earlier run.

AOTAutograd's cache does not see the rules of a custom op, so an edited rule would be tested as it was before.
"""

from collections.abc import Iterator

import pytest
import torch
import torch._functorch.config

torch._functorch.config.enable_autograd_cache = False
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture
def poisoned() -> Iterator[None]:
    """``torch.empty`` gives NaN, so that an element which is never written shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
