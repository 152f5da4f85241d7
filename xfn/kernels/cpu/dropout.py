"""Bias, activation, dropout and residual in C++: see xfn/csrc/cpu/drop.h."""

from collections.abc import Sequence

from torch import Tensor

from ..._core.activations import ACTIVATIONS
from ..._core.philox import threshold
from .rows import DETAIL as DETAIL
from .rows import DROPOUT, DROPOUT_BACKWARD, Maybe, Parts, bits, cotangent
from .rows import certain as certain
from .rows import supports as supports

Group = Sequence[Maybe]
ORDER = {name: i for i, name in enumerate(ACTIVATIONS)}


def forward(x: Group, c: Group, *, p: float, activation: str) -> tuple[Tensor]:
    rest = threshold(p), ORDER[activation]
    given, bias, residual = x
    line, parts = _parts([given, residual], bias, c[0])
    if parts is None:
        return (DROPOUT(given, bias, residual, None, 0, *rest),)
    key = _keys(c[0], parts)
    return (DROPOUT(parts.rows(given), parts.shared(line), parts.rows(residual), key, parts.outer, *rest),)


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, activation: str
) -> list[Maybe]:
    rest = threshold(p), ORDER[activation], bits(needs[:2])
    given, bias, residual = x
    d = cotangent(dy[0], y[0])
    line, parts = _parts([given, d], bias, c[0])
    if parts is None:
        dx, dbias = DROPOUT_BACKWARD(given, bias, None, d, 0, *rest)
        dx, dbias = dx if needs[0] else None, dbias if needs[1] else None
    else:
        of = parts.rows(given), parts.shared(line), _keys(c[0], parts), parts.rows(d)
        dx, dbias = DROPOUT_BACKWARD(*of, parts.outer, *rest)
        dx, dbias = parts.grad(dx, given, needs[0]), parts.shared_grad(dbias, line, needs[1])
        dbias = None if dbias is None or bias is None else dbias.reshape(bias.shape)
    return [dx, dbias, d.clone().sum_to_size(residual.shape) if residual is not None and needs[2] else None]


def _parts(rows: list[Maybe], bias: Maybe, key: Maybe) -> tuple[Maybe, Parts | None]:
    """The bias as a row, and the parts; with a key each example is one, for rows are counted within it."""
    line = bias if bias is None or bias.dim() == 1 else bias.unsqueeze(-2)
    own = [line] if key is None else [line, key.unsqueeze(-2)]
    return line, Parts.of(rows, own, inner=None if key is None else 1)


def _keys(key: Maybe, parts: Parts) -> Maybe:
    """Keys ``[P, 2]``."""
    return None if key is None else key.expand(*parts.batch[:-1], 2).reshape(-1, 2)
