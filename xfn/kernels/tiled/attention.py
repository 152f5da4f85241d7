"""Attention in plain torch, a block of queries at a time: O(M + N) memory, every member of the family.

With s = scale · q kᵀ + bias, P = softmax(s), D the dropout factors and ⟨z⟩ = rowsum(P ∘ z):

    forward    out = (P ∘ D) v,  lse = log Σ exp(s)
    backward   Y = D ∘ (dout vᵀ),  X = Y − ⟨Y⟩ + dlse,  dS = P ∘ X
               dq = scale dS k,  dk = scale dSᵀ q,  dv = (P ∘ D)ᵀ dout,  dbias = dS
    jvp        ṡ = scale (q̇ kᵀ + q k̇ᵀ) + ḃ,  c = ṡ − ⟨ṡ⟩
               tout = (D ∘ P ∘ c) v + (P ∘ D) v̇,  tlse = ⟨ṡ⟩
    hvp        Ṗ = P ∘ c,  Ẏ = D ∘ (ḋout vᵀ + dout v̇ᵀ),  Ẋ = Ẏ − ⟨c ∘ Y + Ẏ⟩ + ḋlse,  ḋS = Ṗ ∘ X + P ∘ Ẋ
               scale (ḋS k + dS k̇),  scale (ḋSᵀ q + dSᵀ q̇),  (Ṗ ∘ D)ᵀ dout + (P ∘ D)ᵀ ḋout,  ḋS
    jvp2       σ = cᵤ ∘ c_w + scale (q̇ᵤ k̇_wᵀ + q̇_w k̇ᵤᵀ)
               (D ∘ P ∘ (σ − ⟨σ⟩)) v + (D ∘ P ∘ cᵤ) v̇_w + (D ∘ P ∘ c_w) v̇ᵤ,  ⟨σ⟩

A block holds whole rows, so P and ⟨·⟩ are summed from the logits themselves, which is more exact than out and lse
as they were rounded; lse only tells which queries see nothing: for them P = 0, and everything is 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._core.dispatch import Call
from .grid import Block, Gradients, Grid, Group, Maybe, add, flip, mul

Grads = list[Maybe]


def supports(call: Call) -> list[str]:
    """Nothing speaks against it: plain torch runs everywhere."""
    return []


def forward(x: Group, c: Group, *, p: float, scale: float, block: float = 0.0) -> tuple[Tensor, Tensor]:
    grid = Grid(x, c, p, scale, block=block)
    out, lse = grid.outputs()
    for b in grid.blocks():
        s = b.logits()
        top = s.amax(-1, keepdim=True) if b.n else s.new_full((*s.shape[:-1], 1), -torch.inf)
        top = top.masked_fill(top == -torch.inf, 0)
        weights = s.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        b.write(b.drop(weights) @ b.v / total.masked_fill(total == 0, 1), out)
        b.write_row(total.log() + top, lse)
    return out, lse


def backward(
    x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float, block: float = 0.0
) -> Grads:
    grid = Grid(x, c, p, scale, ys=[y, dy], block=block)
    grads = Gradients(grid, x, needs)
    for b in grid.blocks(y[1]):
        P, dout = b.weights(), b.rows(dy[0])
        dS = b.hide(P * centred(P, b.drop(mul((dout, b.v.mT))), b.row(dy[1])))
        grads.add_rows(b, (dS, b.k))
        grads.add_keys(b, 1, (dS.mT, b.q))
        grads.add_keys(b, 2, (b.drop(P).mT, dout))
        grads.add_logits(b, dS)
    return grads.result()


def jvp(
    x: Group, c: Group, y: Group, tx: Group, *, p: float, scale: float, block: float = 0.0
) -> tuple[Tensor, Tensor]:
    grid = Grid(x, c, p, scale, [tx], [y], block=block)
    tout, tlse = grid.outputs()
    t = grid.tangent(tx)
    for b in grid.blocks(y[1]):
        P, s = b.weights(), b.along(t)
        mean = average(P, s)
        b.write(mul((b.drop(P * (s - mean)), b.v), (b.drop(P), b.keys(t[2]))), tout)
        b.write_row(mean, tlse)
    return tout, tlse


def hvp(
    x: Group, c: Group, y: Group, ty: Group, dy: Group, tx: Group, tdy: Group, needs: Sequence[bool],
    *, p: float, scale: float, block: float = 0.0,
) -> Grads:  # fmt: skip
    grid = Grid(x, c, p, scale, [tx], [y, ty, dy, tdy], block=block)
    grads = Gradients(grid, x, needs)
    t = grid.tangent(tx)
    for b in grid.blocks(y[1]):
        _hvp_block(b, grads, t, dy, tdy)
    return grads.result()


def _hvp_block(b: Block, grads: Gradients, t: Group, dy: Group, tdy: Group) -> None:
    """A function of its own, so that a block's logits are gone before the next one's are made."""
    dout, tdout = b.rows(dy[0]), b.rows(tdy[0])
    tq, tk, tv = b.rows(t[0], b.grid.scale), b.keys(t[1]), b.keys(t[2])
    P = b.weights()
    turn = centred(P, b.along(t))
    X = b.drop(mul((dout, b.v.mT)))
    tX = b.drop(mul((tdout, b.v.mT), (dout, flip(tv))))
    tX = add(tX, -average(P, add(turn * (0 if X is None else X), tX)), b.row(tdy[1]))
    X = centred(P, X, b.row(dy[1]))
    dS, tdS = b.hide(P * X), b.hide(P * add(turn * X, tX))
    del X, tX
    grads.add_rows(b, (tdS, b.k), (dS, tk))
    grads.add_keys(b, 1, (tdS.mT, b.q), (dS.mT, tq))
    grads.add_logits(b, tdS)
    del dS, tdS
    grads.add_keys(b, 2, (b.drop(b.hide(P * turn)).mT, dout), (b.drop(P).mT, tdout))


def jvp2(
    x: Group, c: Group, y: Group, uy: Group, wy: Group, ux: Group, wx: Group,
    *, p: float, scale: float, block: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grid = Grid(x, c, p, scale, [ux, wx], [y, uy, wy], block=block)
    tout, tlse = grid.outputs()
    u, w = grid.tangent(ux), grid.tangent(wx)
    for b in grid.blocks(y[1]):
        P = b.weights()
        s, r = centred(P, b.along(u)), centred(P, b.along(w))
        uq, wq = b.rows(u[0], scale), b.rows(w[0], scale)
        bent = add(s * r, mul((uq, flip(b.keys(w[1]))), (wq, flip(b.keys(u[1])))))
        mean = average(P, bent)
        moved = mul((b.drop(P * (bent - mean)), b.v), (b.drop(P * s), b.keys(w[2])), (b.drop(P * r), b.keys(u[2])))
        b.write(moved, tout)
        b.write_row(mean, tlse)
    return tout, tlse


def average(P: Tensor, z: Tensor) -> Tensor:
    """⟨z⟩, one number a row."""
    return (P * z).sum(-1, keepdim=True)


def centred(P: Tensor, z: Maybe, shift: Maybe = None) -> Tensor:
    """z − ⟨z⟩ + shift; what is absent is zero."""
    centre: Tensor = P.new_zeros(()) if z is None else z - average(P, z)
    return centre if shift is None else centre + shift
