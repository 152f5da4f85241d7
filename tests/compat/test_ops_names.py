"""What programs ask xformers for besides functions: dispatch, biases for tests, operators, checkpoints."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cases import agree
from xfn.compat import attn_bias_utils as utils
from xfn.compat import checkpoint, list_operators
from xfn.compat.ops import fmha, memory_efficient_attention
from xfn.compat.ops.fmha import attn_bias as b
from xfn.compat.ops.fmha.common import BIASES, pack_fp8_tensorwise_per_head
from xfn.compat.ops.fmha.dispatch import _dispatch_bw, _dispatch_fw, _dispatch_fw_priority_list


@pytest.mark.parametrize("fmt", ["BMHK", "BMGHK", "BMK"])
@pytest.mark.parametrize("kind", [type(None), Tensor, *BIASES], ids=lambda kind: kind.__name__)
def test_every_bias_is_made_and_is_what_it_hides(kind: Any, fmt: str) -> None:
    """Against attention by its formula, on what both of them see."""
    B, G, H, M, N, K = 2, 2, 3, 6, 9, 4
    make = (kind, B, H, G if fmt == "BMGHK" else 1, M, N, "cpu", torch.float32, False, fmt)
    if fmt == "BMK" and kind not in (type(None), Tensor, b.LowerTriangularMask):
        return
    bias = utils.create_attn_bias(*make, page_size=3)
    packed = isinstance(bias, (b.BlockDiagonalMask, *utils.PADDED, *utils.GAPPY))
    heads = {"BMHK": (H,), "BMGHK": (G, H), "BMK": ()}[fmt]
    size = B * H if fmt == "BMK" else B
    q = torch.randn(1, B * M, *heads, K) if packed else torch.randn(size, M, *heads, K)
    k, v = torch.randn(2, *((1, B * N) if packed else (size, N)), *heads, K)
    want = utils.ref_attention(q, k, v, bias).nan_to_num(0.0)
    agree(memory_efficient_attention(q, k, v, bias), want, 1e-4)


@pytest.mark.parametrize("kind", [b.LowerTriangularMaskWithTensorBias, b.BlockDiagonalGappyKeysMask])
def test_biases_of_more_queries_than_keys_hide_no_key_from_all(kind: Any) -> None:
    bias = utils.create_attn_bias(kind, 2, 3, 1, 9, 4, "cpu", torch.float32, False, "BMHK")
    drawn = bias.materialize((1, 1, 9, 4) if kind is b.LowerTriangularMaskWithTensorBias else (18, 8))
    assert drawn.isfinite().any(-1).all()
    assert drawn.shape == ((2, 3, 9, 4) if kind is b.LowerTriangularMaskWithTensorBias else (18, 8))


def test_caches_in_pages() -> None:
    k, v = torch.randn(2, 2, 6, 1, 4)
    tables, pages, values = utils.pack_kv_cache(k, v, [3, 5], 2)
    bias = b.PagedBlockDiagonalPaddedKeysMask.from_seqlens([1, 1], [3, 5], tables, 2)
    q = torch.randn(1, 2, 1, 4)
    rows = [memory_efficient_attention(q[:, [i]], k[[i], :n], v[[i], :n]) for i, n in enumerate((3, 5))]
    agree(memory_efficient_attention(q, pages, values, bias), torch.cat(rows, 1))


def test_operators_are_named_in_their_order() -> None:
    few, many = torch.zeros(1, 8, 32, 16), torch.zeros(1, 2048, 1, 16).expand(-1, -1, 32, -1)
    shared = fmha.Inputs(few, many, many)
    order = [fmha.flash3.FwOp, fmha.flash.FwOp, fmha.cutlass.FwOp]
    assert _dispatch_fw_priority_list(shared, True) == order
    assert _dispatch_fw_priority_list(shared, False)[:2] == [fmha.flash.FwOp, fmha.triton_splitk.FwOp]
    blocks = b.BlockDiagonalMask.from_seqlens([8], [2048])
    assert _dispatch_fw_priority_list(fmha.Inputs(few, many, many, blocks), False)[0] is fmha.triton_splitk.FwOp
    for q, k in ((few, many.contiguous()), (few.repeat(1, 5, 1, 1), many), (few, many[:, :64])):
        assert _dispatch_fw_priority_list(fmha.Inputs(q, k, k), False) == order
    assert _dispatch_fw(shared, False).supports(shared)
    assert _dispatch_bw(shared) is fmha.flash3.BwOp
    with pytest.raises(NotImplementedError, match=r"flash3F: .*\n    flashF: "):
        _dispatch_fw(fmha.Inputs(few, many[..., :3], many), True)
    assert fmha.triton_splitk.FwOp_Map[4].SPLIT_K == 4
    assert not fmha.cutlass.FwOp.shape_not_supported_reasons(1, 2, 3, 4)
    assert fmha.cutlass.FwOp.shape_not_supported_reasons(1, 2, 3, 1 << 17)


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 1), (0, 0), (9, 9)])
def test_pairs_in_a_window(window: tuple[int, int]) -> None:
    left, right = (99 if side < 0 else side for side in window)
    bias = b.LocalAttentionFromBottomRightMask(left, right)
    assert fmha.flash3.mask_non_zeros(5, 7, *window) == int((bias.materialize((5, 7)) == 0).sum())


def test_eight_bits_are_multiplied_out() -> None:
    x, scale = torch.ones(2, 3, 4, 5).to(torch.float8_e4m3fn), torch.rand(2, 4)
    agree(pack_fp8_tensorwise_per_head(x, scale, torch.float32), scale[:, None, :, None].expand(2, 3, 4, 5))
    assert pack_fp8_tensorwise_per_head(x, 0.5, torch.half).unique().tolist() == [0.5]


POLICIES: dict[str, Any] = {
    "none": None,
    "nothing": [],
    "names": ["aten.addmm.default"],
    "function": lambda ctx, func, *args, **kwargs: func == torch.ops.aten.relu.default,
    "of old": lambda func, *args, **kwargs: func == torch.ops.aten.addmm.default,
    "everything": lambda ctx, func, *args, **kwargs: True,
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_checkpoints(policy: str, autocast: bool) -> None:
    """Gradients are those without; products are computed once where they are kept; what is dropped is dropped twice."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.randn(3, 4)
    grads, counts = [], []
    for run in (lambda: net(x), lambda: checkpoint(net, x, policy_fn=POLICIES[policy])):
        torch.manual_seed(0)
        with torch.autocast("cpu", enabled=autocast):
            out = run()
        slopes = lambda out=out: grads.append(torch.autograd.grad(out.float().sum(), list(net.parameters())))
        operators = list_operators(slopes)
        counts.append([str(op) for op in operators].count("aten.addmm.default"))
    agree(grads[0], grads[1])
    assert counts == [0, 0 if policy in ("none", "names", "of old", "everything") else 2]
    with torch.no_grad():
        assert checkpoint(net.eval(), x, policy_fn=POLICIES[policy]).equal(net(x))
