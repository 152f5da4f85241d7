"""A summary counts what there is: parameters one by one, operations by formula, bytes as on a real device."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import xfn
from xfn import layout, random, sparsity
from xfn._core.params import leaves
from xfn.factory import Encoder, Patch, costs, summary
from xfn.factory.build import structure
from xfn.factory.stack import Both
from xfn.factory.summary import _rows, _shape, count_ours

E, F, M, W, P = 16, 24, 10, 7, 3
DIMS = xfn.Dims(model=E, heads=2, length=M, vocab=W, hidden=F)
STAGES = [Encoder(xfn.Dims(8, 2), 2, patch=Patch(2, channels=3)), Encoder(xfn.Dims(E), patch=Patch(2))]
CONFIGS: dict[str, Any] = {
    "encoder": Encoder(DIMS, P),
    "reversible": Encoder(DIMS, P, reversible=True, p=0.1),
    "both": xfn.Transformer(Encoder(DIMS), xfn.Decoder(DIMS, 2), tie_embeddings=True),
    "stages": STAGES,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_counted_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = summary(CONFIGS[name], image=(8, 8))
    params = xfn.build(CONFIGS[name]).init(random.key(0))
    assert found.total.parameters == sum(t.numel() for t in leaves(params).values())
    table = capsys.readouterr().out
    assert table == f"{found}\n"
    assert len(table.splitlines()) == len(found.rows) + 2
    assert costs(CONFIGS[name], image=(8, 8)) == found
    assert not capsys.readouterr().out


def test_operations_are_those_of_the_formula() -> None:
    found = {row.name: row for row in summary(CONFIGS["encoder"]).rows}
    assert found["layers.2"].flops == 2 * M * (4 * E * E + 2 * E * F) + 2 * M * M * 2 * E
    assert found["output"].flops == 2 * M * E * W
    shorter = {row.name: row for row in summary(CONFIGS["encoder"], length=M // 2).rows}
    assert shorter["output"].flops == found["output"].flops // 2


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_are_those_of_a_real_device(name: str) -> None:
    made = structure(CONFIGS[name])
    stacks = (made.encoder, made.decoder) if isinstance(made, Both) else (made,)
    inputs = [_shape(stack, None, (8, 8)) for stack in stacks]
    there, here = (_rows(made, inputs, device) for device in ("meta", "cpu"))
    assert [row[:3] for row in there.rows] == [row[:3] for row in here.rows]
    for a, b in zip(there.rows, here.rows, strict=True):
        assert a.activations == pytest.approx(b.activations, rel=0.05, abs=256)


def test_a_reversible_stack_keeps_no_more_for_more_layers() -> None:
    kept = [summary(Encoder(DIMS, n, reversible=True)).rows[1].activations for n in (1, 4)]
    assert kept[0] == kept[1]


def test_tiles_and_entries_are_counted_where_they_are() -> None:
    count_ours()
    q = torch.randn(2, 32, 2, 4)
    with FlopCounterMode(display=False) as dense:
        xfn.attention(q, q, q)
    with FlopCounterMode(display=False) as tiled:
        xfn.blocksparse_attention(layout.causal(32, block=16), q, q, q)
    csr = sparsity.Csr.from_mask(torch.eye(32).bool())
    with FlopCounterMode(display=False) as sparse:
        xfn.sparse_attention(csr, q, q, q)
    assert dense.get_total_flops() == 2 * 2 * 2 * 32 * 32 * 8
    assert tiled.get_total_flops() == dense.get_total_flops() * 3 // 4
    assert sparse.get_total_flops() == dense.get_total_flops() // 32


def test_what_is_not_known_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"needs one: write summary\(config, length=…\)"):
        summary(Encoder(xfn.Dims(8)))
    with pytest.raises(ValueError, match=r"need(s)? their size: write summary\(config, image=\(height, width\)\)"):
        summary(STAGES)
