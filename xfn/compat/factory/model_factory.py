"""Models and blocks as modules, whose parameters have the names of checkpoints."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..._core.params import leaves, tree
from ...bias import Bias
from ...factory.build import coefficients
from .build import Both, assemble, flags, names_of, stacks
from .config import xFormerConfig, xFormerDecoderConfig, xFormerEncoderConfig
from .names import canonical


class Node(torch.nn.Module):
    """Parameters and modules by their names, numbers among them."""

    def __getitem__(self, at: int) -> torch.nn.Module:
        return list(self.children())[at]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[torch.nn.Module]:
        return iter(self.children())

    def plant(self, name: str, t: Tensor) -> None:
        """Put a parameter at its place; random features are no parameters."""
        step, _, rest = name.partition(".")
        if rest:
            if step not in self._modules:
                self.add_module(step, Node())
            self._modules[step].plant(rest, t)  # type: ignore[union-attr, operator]
        elif step == "features" or not t.is_floating_point():
            self.register_buffer(step, t)
        else:
            self.register_parameter(step, torch.nn.Parameter(t))


class Named(Node):
    """A model of such parameters."""

    def __init__(self, made: Both, alone: bool = False) -> None:
        super().__init__()
        self.made, self.names = made, names_of(made, alone)
        found = leaves(made.init(drawn()))
        for n in self.names:
            self.plant(n.name, n.out(found[n.path]))
        if made.tied:
            self.encoders[0].pose_encoding = self.decoders[0].pose_encoding  # type: ignore[index, union-attr]
        self.register_load_state_dict_pre_hook(_renamed)  # type: ignore[no-untyped-call]

    def tree(self) -> dict[str, Any]:
        """The parameters as functions take them."""
        own = {**dict(self.named_parameters(remove_duplicate=False)), **dict(self.named_buffers())}
        return tree({n.path: n.read(own[n.name]) for n in self.names})

    def run(self, *inputs: Tensor, **biases: Any) -> Tensor:
        """What the functions make of it, in training with a key from torch's generator."""
        params = self.tree()
        key = drawn(inputs[0].device) if self.training else None
        return self.made.apply(params, *inputs, **biases, key=key)[0]


class xFormer(Named):
    """A model of encoders, decoders or both, which gives features ``[batch, length, dim_model]``.

    Args:
        stack_configs, tie_embedding_weights, weight_init: as of :class:`xFormerConfig`.
    """

    def __init__(self, stack_configs: Any, tie_embedding_weights: bool = False, weight_init: Any = "vit") -> None:
        self.__dict__["config"] = xFormerConfig(stack_configs, tie_embedding_weights, weight_init)
        super().__init__(assemble(self.__dict__["config"]))

    @classmethod
    def from_config(cls, config: xFormerConfig) -> "xFormer":
        """The model of a config."""
        return cls(config.stack_configs, config.tie_embedding_weights, config.weight_init)

    @torch.no_grad()
    def init_weights(self, weight_init: Any = "vit", **more: Any) -> None:
        """Draw all weights anew."""
        config: Any = self.__dict__["config"]
        again = xFormerConfig(config.stack_configs, config.tie_embedding_weights, weight_init)
        found, own = leaves(assemble(again).init(drawn())), self.state_dict()
        for n in self.names:
            own[n.name].copy_(n.out(found[n.path]))

    def forward(
        self, src: Tensor, tgt: Tensor | None = None, encoder_input_mask: Tensor | None = None,
        decoder_input_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Features of the target, or of the source where there is no decoder.

        Args:
            src: what the encoder sees, and, where there is none, the decoder.
            tgt: what the decoder sees; by default the source.
            encoder_input_mask, decoder_input_mask: ``[batch, length]``, True or 1 for what is there.
        """
        if self.made.encoder is None:
            mask = decoder_input_mask if decoder_input_mask is not None else encoder_input_mask
            return self.run(src if tgt is None else tgt, target_bias=padding(mask))
        if self.made.decoder is None:
            return self.run(src, source_bias=padding(encoder_input_mask))
        biases = {"source_bias": padding(encoder_input_mask), "target_bias": padding(decoder_input_mask)}
        return self.run(src, src if tgt is None else tgt, **biases)


class xFormerEncoderBlock(Named):
    """One layer of an encoder, with what comes before the first and behind the last."""

    def __init__(self, config: xFormerEncoderConfig, **kwargs: Any) -> None:
        stage: Any = config.stage
        deep, one = coefficients([stage], []), replace(stage, layers=1, reversible=False)
        super().__init__(stacks([one], [], tied=False, biased=flags([config]), deep=deep), alone=True)

    @classmethod
    def from_config(cls, config: xFormerEncoderConfig) -> "xFormerEncoderBlock":
        """The block of a config."""
        return cls(config)

    def forward(self, x: Tensor, att_mask: Tensor | None = None, input_mask: Tensor | None = None) -> Tensor:
        """The layer of x; ``(x, x, x)`` is x as query, key and value.

        Args:
            x: what comes in.
            att_mask: ``[M, N]``, or ``[batch, M, N]``: True where a query sees a key, or what is added to logits.
            input_mask: ``[batch, N]``, True or 1 for what is there.
        """
        att_mask, input_mask = (None if mask is x else mask for mask in (att_mask, input_mask))
        _honoured(self.made.encoder, "attention", att_mask)
        return self.run(x, source_bias=seen(att_mask, padding(input_mask)))


class xFormerDecoderBlock(Named):
    """One layer of a decoder."""

    def __init__(self, config: xFormerDecoderConfig, **kwargs: Any) -> None:
        stage: Any = config.stage
        deep, one = coefficients([], [stage]), replace(stage, layers=1)
        made = stacks([], [one], tied=False, biased=flags([config]), memory=config.dim_model, deep=deep)
        super().__init__(made, alone=True)

    @classmethod
    def from_config(cls, config: xFormerDecoderConfig) -> "xFormerDecoderBlock":
        """The block of a config."""
        return cls(config)

    def forward(
        self, target: Tensor, memory: Tensor, encoder_att_mask: Tensor | None = None,
        decoder_att_mask: Tensor | None = None, input_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The layer of a target that looks at the memory.

        Args:
            target: what comes in.
            memory: the encoder's features.
            encoder_att_mask, decoder_att_mask: of the memory, and of the target itself, as of the encoder's block.
            input_mask: ``[batch, M]``, True or 1 for what of the target is there.
        """
        _honoured(self.made.decoder, "attention", decoder_att_mask)
        _honoured(self.made.decoder, "cross", encoder_att_mask)
        key = drawn(target.device) if self.training else None
        losses: dict[str, Tensor] = {}
        own, across = seen(decoder_att_mask, padding(input_mask)), seen(encoder_att_mask, None)
        return self.made.decode(self.tree(), target, memory, Bias.of(own), Bias.of(across), losses, key)[0]


def drawn(device: torch.device | None = None) -> Tensor:
    """A key from torch's generator."""
    return torch.randint(2**32, (2,)).to(device)


def padding(mask: Tensor | None) -> Tensor | None:
    """A bias ``[batch, 1, 1, N]`` of True or 1 for what is there."""
    if mask is None:
        return None
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("an input mask says what is there: it holds True and False, or 1 and 0")
    return mask.bool()[..., None, None, :]


def seen(mask: Tensor | None, there: Tensor | None) -> Bias | None:
    """What both masks leave."""
    if mask is None and there is None:
        return None
    found = Bias.of(there)
    if mask is not None:
        found = found + Bias.of(mask.unsqueeze(-3))
    return found


def _honoured(stack: Any, name: str, mask: Tensor | None) -> None:
    """Whether a mask may be given."""
    part = next(s for s in stack.stages[0].sublayers if s.name == name)
    assert mask is None or "bias" in part.takes, f"{part.called} takes no attention mask"


def _renamed(module: Any, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Read a checkpoint of another version."""
    inner = {name.removeprefix(prefix): state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
    found = canonical(inner, module.state_dict()) if inner else {}
    state_dict.update({f"{prefix}{name}": t for name, t in found.items()})
