"""Residual layers, as functions of functions: what surrounds f(params, x).

    skip        x + f(x)
    pre         x + f(norm x)
    post        norm(x + f(x))
    deepnorm    norm(α x + f(x))

Sources: He et al., "Deep residual learning" (2015); Xiong et al., "On layer normalization in the transformer
architecture" (2020); Wang et al., "DeepNet" (2022).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .._core.case import Case
from .._core.kinds import check_number, is_integer
from .._core.params import tree
from .._core.shapes import Signature
from .layer_norm import EPS, layer_norm
from .linear import linear

SIGNATURE = Signature.parse("x M E -> y M E")
Layer = Callable[..., Tensor]
"""``layer(params, x, …)``, from ``[..., M, E]`` to the same."""


def skip(f: Layer) -> Layer:
    """x + f(x).

    Args:
        f: ``f(params, x, …)``.

    Returns:
        ``layer(params, x, …)`` with f's own parameters; all else that it is called with goes to f.

    Example:
        >>> import torch
        >>> skip(lambda params, x: params["w"] * x)({"w": 3.0}, torch.ones(1, 2))
        tensor([[4., 4.]])
    """

    def _skip(params: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return x + f(params, x, *args, **options)

    return _skip


def pre(f: Layer, norm: Layer = layer_norm) -> Layer:
    """x + f(norm x).

    Args:
        f: ``f(params, x, …)``.
        norm: ``norm(params, x)``.

    Returns:
        ``layer({"f": …, "norm": …}, x, …)``; all else that it is called with goes to f.

    Raises:
        ValueError: when called, parameters are not those of f and norm.

    Example:
        >>> import torch
        >>> from xfn import init_layer_norm, init_mlp, mlp, random
        >>> params = {"f": init_mlp(random.key(0), 8), "norm": init_layer_norm(random.key(1), 8)}
        >>> pre(mlp)(params, torch.ones(5, 8), p=0.1, key=random.key(2)).shape
        torch.Size([5, 8])
    """

    def _pre(params: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
        of_f, of_norm = _both("pre", params)
        return x + f(of_f, norm(of_norm, x), *args, **options)

    return _pre


def post(f: Layer, norm: Layer = layer_norm) -> Layer:
    """norm(x + f(x)).

    Args:
        f, norm: as of :func:`pre`.

    Returns:
        As of :func:`pre`.

    Raises:
        ValueError: when called, parameters are not those of f and norm.

    Example:
        >>> import torch
        >>> post(lambda params, x: params["w"] * x)({"f": {"w": 3.0}, "norm": {}}, torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.2247,  0.0000,  1.2247]])
    """
    return _normed("post", f, 1.0, norm)


def deepnorm(f: Layer, alpha: float, norm: Layer = layer_norm) -> Layer:
    """norm(α x + f(x)).

    Args:
        f: as of :func:`pre`.
        alpha: α, of :func:`deepnorm_coefficients`.
        norm: as of :func:`pre`.

    Returns:
        As of :func:`pre`.

    Raises:
        ValueError: when called, parameters are not those of f and norm.

    Example:
        >>> import torch
        >>> alpha, beta = deepnorm_coefficients(encoder=8)["encoder"]
        >>> layer = deepnorm(lambda params, x: x.flip(-1), alpha)
        >>> layer({"f": {}, "norm": {}}, torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.2247,  0.0000,  1.2247]])
    """
    return _normed("deepnorm", f, check_number("alpha", alpha), norm)


class DeepNorm(NamedTuple):
    """α scales what goes past a layer; β is the gain with which weights are drawn, of the feed-forward part and of the
    value and output projections."""

    alpha: float
    beta: float


def deepnorm_coefficients(encoder: int = 0, decoder: int = 0) -> dict[str, DeepNorm]:
    """α and β of stacks of so many layers.

    A stack alone, of N layers of an encoder or of a decoder, has α = (2N)^(1/4) and β = (8N)^(−1/4). An encoder of N
    layers with a decoder of M has α = 0.81 (N⁴M)^(1/16) and β = 0.87 (N⁴M)^(−1/16), and its decoder α = (3M)^(1/4) and
    β = (12M)^(−1/4).

    Args:
        encoder: N, or 0 where there is none.
        decoder: M, or 0.

    Returns:
        ``{"encoder": (alpha, beta), "decoder": (alpha, beta)}``, of the stacks that there are.

    Raises:
        ValueError: there is none, or they are no numbers of layers.

    Example:
        >>> deepnorm_coefficients(decoder=8)
        {'decoder': DeepNorm(alpha=2.0, beta=0.3535...)}

    Source: Wang et al., "DeepNet" (2022), table of figure 2.
    """
    if not all(is_integer(n) and n >= 0 for n in (encoder, decoder)) or not (encoder or decoder):
        raise ValueError(f"encoder={encoder!r} and decoder={decoder!r} must be numbers of layers, not both 0")
    if encoder and decoder:
        both = (encoder**4 * decoder) ** (1 / 16)
        return {
            "encoder": DeepNorm(0.81 * both, 0.87 / both),
            "decoder": DeepNorm((3 * decoder) ** 0.25, (12 * decoder) ** -0.25),
        }
    n = encoder or decoder
    return {"encoder" if encoder else "decoder": DeepNorm((2 * n) ** 0.25, (8 * n) ** -0.25)}


def _normed(name: str, f: Layer, alpha: float, norm: Layer) -> Layer:
    def _post(params: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
        of_f, of_norm = _both(name, params)
        return norm(of_norm, alpha * x + f(of_f, x, *args, **options))

    return _post


def _both(name: str, params: Any) -> tuple[Any, Any]:
    if not isinstance(params, Mapping) or set(params) != {"f", "norm"}:
        got = ", ".join(map(str, params)) or "nothing" if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(f"the parameters of {name} are {{'f': …, 'norm': …}}, but these are {got}")
    return params["f"], params["norm"]


def _case(name: str, layer: Layer, reference: Callable[..., Tensor], tags: str = "") -> Case:
    names = ("weight",) if name == "skip" else ("f.weight", "norm.weight")

    def call(x: Tensor, *weights: Tensor, backend: str | None = None) -> tuple[Tensor]:
        if backend == "reference":
            return (reference(x, lambda x: (x @ weights[0].mT).tanh(), lambda x: _norm(x) * weights[-1]),)
        return (layer(tree(dict(zip(names, weights, strict=True))), x, "tanh", backend=backend),)

    shapes = {"x": "M E"} | dict(zip(names, ("E E", "E"), strict=False))
    return Case(name, call, shapes, {"M": 2, "E": 3}, frozenset(tags.split()))


def _norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


CASES = (
    _case("skip", skip(linear), lambda x, f, _: x + f(x)),
    _case("pre", pre(linear), lambda x, f, norm: x + f(norm(x)), tags="tiny"),
    _case("post", post(linear), lambda x, f, norm: norm(x + f(x))),
    _case("deepnorm", deepnorm(linear, 1.5), lambda x, f, norm: norm(1.5 * x + f(x))),
)
