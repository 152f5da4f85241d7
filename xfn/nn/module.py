"""Modules that hold parameters and draw keys; what they compute is a function's affair."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._core.philox import drawn


class Tree(torch.nn.Module):
    """A tree of dicts of tensors as nested modules, so that names of parameters are paths of the tree."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        super().__init__()
        self._plant(tree)

    def _plant(self, tree: Mapping[str, Any]) -> None:
        self._branches = tuple(tree)
        for name, value in tree.items():
            if isinstance(value, Mapping):
                self.add_module(name, Tree(value))
            elif value.is_floating_point():
                self.register_parameter(name, torch.nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def extra_repr(self) -> str:
        """The shapes of its own parameters."""
        own = {**self._parameters, **self._buffers}
        return ", ".join(f"{name}: {list(t.shape)}" for name, t in own.items() if t is not None)

    def tree(self) -> dict[str, Any]:
        """The parameters as a tree of dicts, as functions take them."""
        found: dict[str, Any] = {}
        for name in self._branches:
            value = getattr(self, name)
            found[name] = value.tree() if isinstance(value, Tree) else value
        return found


class Module(Tree):
    """A pair of functions as a module.

    Its parameters are those of ``model.init(key)``, under their paths. In training, it draws a key for every call from
    torch's generator and passes it on; in evaluation, it passes none. It returns what the function returns.

    Args:
        model: ``(init, apply)``, as :func:`xfn.build` makes it.
        key: what parameters are drawn with; by default torch's generator draws one.

    Raises:
        TypeError: ``model`` is no pair of functions, but a config, say.

    Example:
        >>> import xfn
        >>> net = Module(xfn.build(xfn.Encoder(xfn.Dims(model=8, heads=2))))
        >>> y, aux = net(torch.ones(2, 5, 8))
        >>> list(net.state_dict())[0], list(net.params.tree())
        ('layers.0.attention.q.bias', ['layers', 'norm'])
    """

    def __init__(self, model: Any, key: Tensor | None = None) -> None:
        if not (isinstance(model, tuple) and len(model) == 2 and all(map(callable, model))):
            raise TypeError(f"a module is made of (init, apply), but got {model!r}: write xfn.build(config)")
        torch.nn.Module.__init__(self)
        self.model: Any = model
        init, self._function = model
        self._draws = "key" in inspect.signature(self._function).parameters
        self._plant(init(drawn() if key is None else key))

    @property
    def params(self) -> Tree:
        """The parameters; ``params.tree()`` is what functions take."""
        return self

    def _forward(self, *args: Any, key: Tensor | None = None, **options: Any) -> Any:
        """``apply(params, …)``, in training with a key: that which is passed, or a new one."""
        params = self.tree()
        if not self._draws:
            return self._function(params, *args, **options)
        if key is None and self.training:
            key = drawn(next((t.device for t in self.parameters()), None))
        return self._function(params, *args, key=key, **options)

    forward = _forward
