"""What operators have in common."""

from typing import ClassVar

from torch import Tensor


class BaseOperator:
    """A name of what plain torch does here."""

    NAME: ClassVar[str] = ""
    OPERATOR_CATEGORY: ClassVar[str] = ""

    @classmethod
    def is_available(cls) -> bool:
        """True: it runs everywhere."""
        return True


def _get_storage_base(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
