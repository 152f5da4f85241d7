"""Which token goes to which of X experts, and where it finds room there."""

import torch
from torch import Tensor, func

from .. import random


def choices(gates: Tensor, top: int, key: Tensor | None) -> Tensor:
    """The experts of each token, best first: ``[..., M, top]``, for ``gates [..., M, X]``.

    With keys ``[..., 2]``, those behind the first are chosen with Gumbel noise: as if drawn with their gates' odds.
    """
    scores = gates.detach().log().clamp_min(-torch.finfo(gates.dtype).max)  # −∞ is for those that were chosen
    noisy = scores if key is None else scores + gumbel(key, gates)
    chosen: list[Tensor] = []
    for _ in range(top):
        chosen.append((noisy if chosen else scores).argmax(-1, keepdim=True))
        scores, noisy = (torch.where(marked(chosen[-1], gates).bool(), -torch.inf, s) for s in (scores, noisy))
    return torch.cat(chosen, -1)


def gumbel(key: Tensor, like: Tensor) -> Tensor:
    """−log(−log u), of numbers drawn with one key per example."""

    def draw(key: Tensor) -> Tensor:
        if key.dim() > 1:
            return func.vmap(draw)(key)
        return random.uniform(key, tuple(like.shape[-2:]), dtype=like.dtype)

    if not key.numel():
        return torch.zeros_like(like)
    return -(-draw(key).clamp_min(torch.finfo(like.dtype).tiny).log()).log()


def marked(expert: Tensor, like: Tensor) -> Tensor:
    """One at the expert, zero at others: ``[..., M, X]`` for ``expert [..., M, 1]``."""
    return (expert == torch.arange(like.shape[-1], device=like.device)).to(like.dtype)


def places(chosen: Tensor, X: int, size: int, causal: bool = False) -> Tensor:
    """The place of each token among the X · size that experts have, or X · size where there is no room:
    ``[..., M, top]``. First choices go before seconds, and each in the order of the tokens; or, when causal, all
    choices of a token before those of the next."""
    M, top = chosen.shape[-2:]
    line = (chosen if causal else chosen.mT).flatten(-2).unsqueeze(-1)  # [..., top M, 1]
    came = (line == torch.arange(X, device=chosen.device)).cumsum(-2)
    turn = came.gather(-1, line).squeeze(-1) - 1
    place = torch.where(turn < size, line.squeeze(-1) * size + turn, X * size)
    spread: Tensor = place.unflatten(-1, (M, top)) if causal else place.unflatten(-1, (top, M)).mT
    return spread


def filled(x: Tensor, place: Tensor, X: int, size: int) -> Tensor:
    """The tokens at their places, and zeros where nobody came: ``[..., X, size, E]``."""
    (M, E), batch = x.shape[-2:], place.shape[:-2]
    token = torch.arange(M, device=x.device).unsqueeze(-1).expand(place.shape)
    empty = torch.full((*batch, X * size + 1), M, device=x.device)
    source = empty.scatter(-1, place.flatten(-2), token.flatten(-2))[..., :-1]
    rows = torch.cat([x, x.new_zeros(*x.shape[:-2], 1, E)], -2)
    found: Tensor = rows.gather(-2, source.unsqueeze(-1).expand(*source.shape, E)).unflatten(-2, (X, size))
    return found


def mixed(y: Tensor, place: Tensor, shares: Tensor) -> Tensor:
    """What each token's experts made of it, ``y [..., X, size, E]``, in its shares ``[..., M, top]``."""
    E, flat = y.shape[-1], y.flatten(-3, -2)
    flat = torch.cat([flat, flat.new_zeros(*flat.shape[:-2], 1, E)], -2)
    each = flat.gather(-2, place.flatten(-2).unsqueeze(-1).expand(*place.shape[:-2], -1, E))
    parts: Tensor = each.unflatten(-2, place.shape[-2:]).to(shares.dtype) * shares.unsqueeze(-1)
    return parts.sum(-2).to(y.dtype)


def balance(gates: Tensor, first: Tensor) -> Tensor:
    """(1 / X) Σₑ cₑ / M · mean gₑ, with cₑ how often e is the first choice, ``first [..., M, 1]``."""
    M = max(1, gates.shape[-2])
    return (marked(first, gates).sum(-2) / M * gates.sum(-2) / M).mean(-1)
