"""Attention in plain torch, a block of queries at a time: O(M + N) memory, every member of the family.

With s = scale · q kᵀ + bias, P = exp(s − lse), D the dropout factors, Δ = rowsum(dout ∘ out) − dlse:

    forward    out = (P ∘ D) v,  lse = log Σ exp(s)
    backward   X = D ∘ (dout vᵀ) − Δ,  dS = P ∘ X
               dq = scale dS k,  dk = scale dSᵀ q,  dv = (P ∘ D)ᵀ dout,  dbias = dS
    jvp        ṡ = scale (q̇ kᵀ + q k̇ᵀ) + ḃ,  μ = rowsum(P ∘ ṡ)
               tout = (D ∘ P ∘ (ṡ − μ)) v + (P ∘ D) v̇,  tlse = μ                (as Σ P D v = out)
    hvp        Ṗ = P ∘ (ṡ − tlse),  Ẋ = D ∘ (ḋout vᵀ + dout v̇ᵀ) − Δ̇,  ḋS = Ṗ ∘ X + P ∘ Ẋ
               Δ̇ = rowsum(dout ∘ tout) + rowsum(ḋout ∘ out) − ḋlse
               scale (ḋS k + dS k̇),  scale (ḋSᵀ q + dSᵀ q̇),  (Ṗ ∘ D)ᵀ dout + (P ∘ D)ᵀ ḋout,  ḋS
    jvp2       a = ṡᵤ − tlseᵤ,  b = ṡ_w − tlse_w,  σ = a ∘ b + scale (q̇ᵤ k̇_wᵀ + q̇_w k̇ᵤᵀ),  ν = rowsum(P ∘ σ)
               (D ∘ P ∘ (σ − ν)) v + (D ∘ P ∘ a) v̇_w + (D ∘ P ∘ b) v̇ᵤ,  ν

A query that sees nothing has lse = −∞, read as 0, and P = 0: everything is 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._core.dispatch import Call
from .grid import Block, Gradients, Grid, Group, Maybe

Grads = list[Maybe]


def supports(call: Call) -> list[str]:
    """Nothing speaks against it: plain torch runs everywhere."""
    return []


def forward(x: Group, c: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    grid = Grid(x, c, p, scale)
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


def backward(x: Group, c: Group, y: Group, dy: Group, needs: Sequence[bool], *, p: float, scale: float) -> Grads:
    grid = Grid(x, c, p, scale, ys=[y, dy])
    grads = Gradients(grid, x, needs)
    for b in grid.blocks(y[1]):
        P, dout = b.weights(), b.rows(dy[0])
        dS = P * _sum(b.drop(_mul(dout, b.v.mT)), _delta(b, (y, dy)))
        grads.add_rows(b, lambda: dS @ b.k)
        grads.add_keys(b, 1, lambda: dS.mT @ b.q)
        grads.add_keys(b, 2, lambda: _mul(b.drop(P).mT, dout))
        grads.add_logits(b, dS)
    return grads.result()


def jvp(x: Group, c: Group, y: Group, tx: Group, *, p: float, scale: float) -> tuple[Tensor, Tensor]:
    grid = Grid(x, c, p, scale, [tx], [y,])
    tout, tlse = grid.outputs()
    t = grid.tangent(tx)
    for b in grid.blocks(y[1]):
        P, s = b.weights(), b.along(t)
        mean = (P * s).sum(-1, keepdim=True)
        b.write(_sum(b.drop(P * (s - mean)) @ b.v, _mul(b.drop(P), b.keys(t[2]))), tout)
        b.write_row(mean, tlse)
    return tout, tlse


def hvp(
    x: Group, c: Group, y: Group, ty: Group, dy: Group, tx: Group, tdy: Group, needs: Sequence[bool],
    *, p: float, scale: float,
) -> Grads:  # fmt: skip
    grid = Grid(x, c, p, scale, [tx], [y, ty, dy, tdy])
    grads = Gradients(grid, x, needs)
    t = grid.tangent(tx)
    for b in grid.blocks(y[1]):
        dout, tdout = b.rows(dy[0]), b.rows(tdy[0])
        tq, tk, tv = b.rows(t[0], scale), b.keys(t[1]), b.keys(t[2])
        P = b.weights()
        tP = P * (b.along(t) - b.row(ty[1]))
        X = _sum(b.drop(_mul(dout, b.v.mT)), _delta(b, (y, dy)))
        tX = _sum(b.drop(_sum(_mul(tdout, b.v.mT), _mul(dout, _T(tv)))), _delta(b, (ty, dy), (y, tdy)))
        dS, tdS = P * X, tP * X + P * tX
        grads.add_rows(b, lambda: _sum(tdS @ b.k, _mul(dS, tk)))
        grads.add_keys(b, 1, lambda: _sum(tdS.mT @ b.q, _mul(dS.mT, tq)))
        grads.add_keys(b, 2, lambda: _sum(_mul(b.drop(tP).mT, dout), _mul(b.drop(P).mT, tdout)))
        grads.add_logits(b, tdS)
    return grads.result()


def jvp2(
    x: Group, c: Group, y: Group, uy: Group, wy: Group, ux: Group, wx: Group, *, p: float, scale: float
) -> tuple[Tensor, Tensor]:
    grid = Grid(x, c, p, scale, [ux, wx], [y, uy, wy])
    tout, tlse = grid.outputs()
    u, w = grid.tangent(ux), grid.tangent(wx)
    for b in grid.blocks(y[1]):
        P, s, r = b.weights(), b.along(u) - b.row(uy[1]), b.along(w) - b.row(wy[1])
        uq, wq = b.rows(u[0], scale), b.rows(w[0], scale)
        bent = _sum(s * r, _mul(uq, _T(b.keys(w[1]))), _mul(wq, _T(b.keys(u[1]))))
        mean = (P * bent).sum(-1, keepdim=True)
        turned = _sum(_mul(b.drop(P * s), b.keys(w[2])), _mul(b.drop(P * r), b.keys(u[2])))
        b.write(_sum(b.drop(P * (bent - mean)) @ b.v, turned), tout)
        b.write_row(mean, tlse)
    return tout, tlse


def _delta(b: Block, *pairs: tuple[Group, Group]) -> Tensor:
    """−Δ, or with two pairs −Δ̇: the sum over pairs of −rowsum(dout ∘ out), plus the dlse of the last one."""
    rows = [_dot(b.rows(y[0]), b.rows(dy[0])) for y, dy in pairs]
    total = _sum(*(-r for r in rows if r is not None), b.row(pairs[-1][1][1]))
    return b.q.new_zeros(()) if total is None else total


def _dot(a: Maybe, b: Maybe) -> Maybe:
    return None if a is None or b is None else (a * b).sum(-1, keepdim=True)


def _mul(a: Maybe, b: Maybe) -> Maybe:
    return None if a is None or b is None else a @ b


def _T(a: Maybe) -> Maybe:
    return None if a is None else a.mT


def _sum(*terms: Maybe) -> Any:
    present = [t for t in terms if t is not None]
    return sum(present[1:], present[0]) if present else None
