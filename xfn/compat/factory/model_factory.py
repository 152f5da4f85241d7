"""Models as modules, whose parameters have the names of checkpoints."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..._core.params import leaves, tree
from .._drawn import drawn
from .build import Both, assemble, names_of
from .config import xFormerConfig as xFormerConfig
from .masks import entered, padding
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
        first, second = self.made.encoder, self.made.decoder
        goal = src if tgt is None else tgt
        if first is None:
            mask = decoder_input_mask if decoder_input_mask is not None else encoder_input_mask
            return self.run(entered(second, goal), target_bias=padding(mask, second))
        source, source_bias = entered(first, src), padding(encoder_input_mask, first, second)
        if second is None:
            return self.run(source, source_bias=source_bias)
        target_bias = padding(decoder_input_mask, second)
        return self.run(source, entered(second, goal), source_bias=source_bias, target_bias=target_bias)


def _renamed(module: Any, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Read a checkpoint of another version."""
    inner = {name.removeprefix(prefix): state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
    found = canonical(inner, module.state_dict()) if inner else {}
    state_dict.update({f"{prefix}{name}": t for name, t in found.items()})
