"""Names of which one is chosen."""

from enum import StrEnum
from typing import Any, NoReturn


class Choice(StrEnum):
    """One of several names; what is none of them is told which there are."""

    @classmethod
    def _missing_(cls, value: Any) -> NoReturn:
        raise ValueError(f"no {cls.__name__} is called {value!r}; there are {[item.value for item in cls]}")
