"""Attentions of xfn.parts on heads that are folded into the batch."""

from typing import Any

from torch import Tensor

from ....parts import honours
from ....sparsity import Csr
from .._registry import Strict, drawn, ignored
from ._masks import Mask, taken
from .base import Attention


def present(**named: Any) -> list[str]:
    """The names of what is not None."""
    return [name for name, value in named.items() if value is not None]


class Part(Attention, Strict):
    """A part of :mod:`xfn.parts.attention` as an attention of ``[B · H, S, K]``."""

    supports_attention_mask = False
    num_heads = 1
    causal = False

    def __init__(self, part: Any, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__()
        ignored(type(self).__name__, kwargs)
        self.part, self.dropout = part, dropout

    def params(self) -> dict[str, Any]:
        """What the part takes as its parameters."""
        return {}

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        att_mask: Mask = None,
        key_padding_mask: Tensor | None = None,
        *args: Any,
        mask: Mask = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend, ``[B · H, M, K]``.

        Args:
            q, k, v: ``[B · H, M, K]``, ``[B · H, N, K]`` and ``[B · H, N, V]``.
            att_mask, mask: booleans that keep, or what is added, where :attr:`supports_attention_mask`.
            key_padding_mask: booleans ``[B, N]``, where :attr:`supports_key_padding_mask`.
        """
        att_mask = mask if att_mask is None else att_mask
        takes, H = honours(self.part), self.num_heads if len(q) % self.num_heads == 0 else 1
        asked: dict[str, Any] = {}
        assert att_mask is None or "bias" in takes, f"{type(self).__name__} takes no attention mask"
        assert key_padding_mask is None or takes & {"bias", "kept"}, f"{type(self).__name__} takes no key padding"
        if "bias" in takes:
            seen = taken(att_mask, len(q), q.shape[-2], k.shape[-2], key_padding_mask)
            asked["bias"] = seen.to_mask() if isinstance(seen, Csr) else seen
            H = 1
        elif key_padding_mask is not None:
            N = k.shape[-2]
            fits = key_padding_mask.shape[1:] == (N,) and len(q) % max(len(key_padding_mask), 1) == 0
            assert fits, f"key padding is [B, {N}] of B · H = {len(q)}, but got {list(key_padding_mask.shape)}"
            H = len(q) // len(key_padding_mask)
            floating = key_padding_mask.is_floating_point()
            asked["kept"] = key_padding_mask == 0 if floating else key_padding_mask
        if "causal" in takes:
            asked["causal"] = self.causal
        if "key" in takes:
            asked["key"] = self.key(q)
        heads = (t.unflatten(0, (-1, H)).movedim(1, 2) for t in (q, k, v))
        return self.part.apply(self.params(), *heads, **asked).movedim(2, 1).flatten(0, 1)  # type: ignore[no-any-return]

    def key(self, q: Tensor) -> Tensor | None:
        """What is drawn with: nothing in evaluation."""
        return drawn(self, self.dropout, q.device)
