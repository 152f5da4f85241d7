"""Single layers as modules, whose parameters have the names of checkpoints."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from ...bias import Bias
from ...factory.build import coefficients
from .._drawn import drawn
from ..components.attention import ATTENTION_REGISTRY
from .build import Both, stacks
from .config import xFormerDecoderConfig, xFormerEncoderConfig
from .masks import entered, padding, seen
from .model_factory import Named
from .parts import Within
from .shared import flags


class Block(Named):
    """One layer, and what its attention is like."""

    def __init__(self, made: Both, config: Any) -> None:
        super().__init__(made, alone=True)
        heads, stage = getattr(config, config.heads[-1]), config.stage
        named = heads["attention"] if isinstance(heads["attention"], str) else heads["attention"]["name"]
        like = ATTENTION_REGISTRY[named].constructor
        part = getattr(stage, "cross", stage.attention)
        self.supports_attention_mask = "bias" in self.sublayer("attention").takes
        self.requires_same_k_q_dimensions = named == "blocksparse" or bool(like.requires_same_k_q_dimensions)
        self.requires_squared_context_length = bool(
            like.requires_squared_context or "grid" in self.sublayer("feedforward").takes
        )
        past = part.past if isinstance(part, Within) else config.block_type == "encoder" and stage.causal
        self.causal = self.causal_attention = past

    @classmethod
    def from_config(cls, config: Any) -> Any:
        """The block of a config."""
        return cls(config)  # type: ignore[call-arg]

    def sublayer(self, name: str) -> Any:
        """That of a name."""
        stack: Any = self.made.encoder or self.made.decoder
        return next(s for s in stack.stages[0].sublayers if s.name == name)

    def honoured(self, name: str, mask: Any) -> None:
        """Whether a mask may be given."""
        part = self.sublayer(name)
        assert mask is None or "bias" in part.takes, f"{part.called} takes no attention mask"


class xFormerEncoderBlock(Block):
    """One layer of an encoder, with what comes before the first and behind the last."""

    def __init__(self, config: xFormerEncoderConfig, **kwargs: Any) -> None:
        stage: Any = config.stage
        deep, one = coefficients([stage], []), replace(stage, layers=1, reversible=False)
        super().__init__(stacks([one], [], tied=False, flags=flags([config]), deep=deep), config)

    def forward(self, x: Tensor, att_mask: Any = None, input_mask: Tensor | None = None) -> Tensor:
        """The layer of x; ``(x, x, x)`` is x as query, key and value.

        Args:
            x: what comes in.
            att_mask: ``[M, N]``, or ``[batch, M, N]``: True where a query sees a key, or what is added to logits.
            input_mask: ``[batch, N]``, True or 1 for what is there.
        """
        att_mask, input_mask = (None if mask is x else mask for mask in (att_mask, input_mask))
        self.honoured("attention", att_mask)
        stack = self.made.encoder
        return self.run(entered(stack, x), source_bias=seen(att_mask, padding(input_mask, stack)))


class xFormerDecoderBlock(Block):
    """One layer of a decoder."""

    def __init__(self, config: xFormerDecoderConfig, **kwargs: Any) -> None:
        stage: Any = config.stage
        deep, one = coefficients([], [stage]), replace(stage, layers=1)
        made = stacks([], [one], tied=False, flags=flags([config]), memory=config.dim_model, deep=deep)
        super().__init__(made, config)

    def forward(
        self, target: Tensor, memory: Tensor, encoder_att_mask: Any = None, decoder_att_mask: Any = None,
        input_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The layer of a target that looks at the memory.

        Args:
            target: what comes in.
            memory: the encoder's features.
            encoder_att_mask, decoder_att_mask: of the memory, and of the target itself, as of the encoder's block.
            input_mask: ``[batch, M]``, True or 1 for what of the target is there.

        Raises:
            AssertionError: what an attention does not take; target and memory of two lengths, where they may not be.
        """
        self.honoured("attention", decoder_att_mask)
        self.honoured("cross", encoder_att_mask)
        target = entered(self.made.decoder, target)
        if target.dim() > 2 and (M := target.shape[-2]) != (N := memory.shape[-2]):
            for name in ("requires_same_k_q_dimensions", "requires_squared_context_length", "causal_attention"):
                assert not getattr(self, name), f"{name}: the target has {M} tokens, and the memory {N}"
        key = drawn(target.device) if self.training else None
        losses: dict[str, Tensor] = {}
        own = seen(decoder_att_mask, padding(input_mask, self.made.decoder))
        across = seen(encoder_att_mask, None)
        return self.made.decode(self.tree(), target, memory, Bias.of(own), Bias.of(across), losses, key)[0]
