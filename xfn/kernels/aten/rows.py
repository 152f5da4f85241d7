"""What is shared by kernels in plain torch of ops on rows: they take every call, on every device."""

from ..._core.dispatch import Call
from ..._core.rows import Maybe as Maybe
from ..._core.rows import cotangent as cotangent
from ..._core.rows import fit as fit
from ..._core.rows import passed as passed


def supports(call: Call) -> list[str]:
    return []
