"""Triton 3.6's interpreter, mended where it computes something else than a GPU does, or fails.

Loaded with ``-p tests.gpu.interpreter`` before any kernel, in a process that has TRITON_INTERPRET=1. Every launch is
watched by the sanitizer.
"""

from collections.abc import Iterator
from functools import cache
from math import prod
from typing import Any

import numpy as np
import pytest
import triton
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton.language.semantic import TritonSemantic

from . import sanitizer

assert triton.__version__.startswith("3.6."), "written for triton 3.6: see which of these are still needed"

Builder: Any = interpreter.InterpreterBuilder
Handle: Any = interpreter.TensorHandle
BITS = {np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift}
TESTS = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}


def widened(x: Any) -> Any:
    """bfloat16, as its bits, in float32."""
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrowed(x: Any) -> Any:
    """float32 to the bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded).astype(np.uint16).reshape(np.shape(x))


def is_bf16(x: Any) -> bool:
    return bool(x.dtype.scalar == tl.bfloat16)


# A tensor of one element is an index: NumPy 2.4 no longer makes an integer of it.


def index(self: Any) -> int:
    data = np.asarray(self.handle.data)
    if data.size != 1:
        raise TypeError("only a scalar is an index")
    return int(data.reshape(-1)[0])


patch_tensor = interpreter._patch_lang_tensor


def patch_lang_tensor(tensor: Any, scope: Any) -> None:
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", index)


# bfloat16 is kept as its bits, which the interpreter multiplies, adds and compares as integers, and truncates to.

create_dot, cast, round_to, binary = Builder.create_dot, Builder.cast_impl, Builder.create_fp_to_fp, Builder.binary_op


def dot(self: Any, a: Any, b: Any, d: Any, precision: Any, accumulations: Any) -> Any:
    a, b = (Handle(widened(t.data), tl.float32) if is_bf16(t) else t for t in (a, b))
    a, b = (Handle(t.data.astype(np.float32), tl.float32) if t.data.dtype == np.float16 else t for t in (a, b))
    if a.data.dtype == d.data.dtype == np.float32:
        return Handle(np.matmul(a.data, b.data) + d.data, d.dtype.scalar)
    return create_dot(self, a, b, d, precision, accumulations)


def cast_impl(self: Any, x: Any, to: Any) -> Any:
    if is_bf16(x) and to.scalar != tl.bfloat16:
        wide = Handle(widened(x.data), tl.float32)
        return wide if to.scalar == tl.float32 else cast(self, wide, to)
    if to.scalar == tl.bfloat16 and not is_bf16(x):
        return Handle(narrowed(x.data.astype(np.float32)), tl.bfloat16)
    return cast(self, x, to)


def fp_to_fp(self: Any, x: Any, to: Any, rounding: Any) -> Any:
    if {x.dtype.scalar, to.scalar} == {tl.bfloat16, tl.float32}:
        return cast_impl(self, x, to)
    return round_to(self, x, to, rounding)


def binary_op(self: Any, a: Any, b: Any, op: Any) -> Any:
    if is_bf16(a) and op not in BITS:
        found = op(widened(a.data), widened(b.data))
        return Handle(found, tl.int1) if op in TESTS else Handle(narrowed(found), tl.bfloat16)
    return binary(self, a, b, op)


def get_bf16(self: Any, value: float) -> Any:
    return Handle(narrowed(np.array([value], dtype=np.float32)), tl.bfloat16)


# The language is patched anew for every call of a function within a kernel, which is most of the time it takes.

depth = 0


class Nothing:
    def restore(self) -> None: ...


class Scope(interpreter._LangPatchScope):  # type: ignore[misc]
    def restore(self) -> None:
        global depth
        super().restore()
        depth -= 1


def patch_lang(function: Any) -> Any:
    global depth
    if depth:
        return Nothing()
    depth += 1
    scope = Scope()
    for language in (tl.core, tl):
        for part in (language, language.tensor, tl.math):
            interpreter._patch_builtin(part, interpreter.interpreter_builder, scope)
        patch_lang_tensor(language.tensor, scope)
        interpreter._patch_lang_core(language, scope)
    interpreter._patch_builtin(tl.core.tensor_descriptor_base, interpreter.interpreter_builder, scope)
    return scope


# Types are made anew for every tensor, and sums are made again in int64 for an assertion that is then left out: both
# together take as long as the arithmetic does, twice.


@cache
def shape_of(sizes: tuple[int, ...]) -> tuple[Any, Any]:
    """A tensor's shape, and its count of numbers."""
    return tl.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(prod(sizes))


block_type, numpy_dtype, dtypes = tl.block_type.__init__, interpreter._get_np_dtype, dict[str, Any]()


@cache
def block_of(sizes: tuple[int, ...]) -> tuple[Any, int, str]:
    """A block's shape, its count of numbers, and its name, but for what is in it."""
    made = object.__new__(tl.block_type)
    block_type(made, tl.int1, list(sizes))
    return made.shape, made.numel, made.name.removesuffix(f"{tl.int1}>")


def tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = shape_of(tuple(type.shape) if type.is_block() else ())


def block(self: Any, element_ty: Any, shape: Any) -> None:
    sizes = (size.value if isinstance(size, tl.constexpr) else size for size in shape)
    self.element_ty, (self.shape, self.numel, name) = element_ty, block_of(tuple(sizes))
    self.name = f"{name}{element_ty}>"


def np_dtype(dtype: Any) -> Any:
    name = dtype.scalar.name
    if name not in dtypes:
        dtypes[name] = numpy_dtype(dtype.scalar)
    return dtypes[name]


# A floating argument is a float32 scalar, not a Python number that takes any dtype.

convert = interpreter._implicit_cvt


def implicit(value: Any) -> Any:
    if isinstance(value, float):
        return tl.tensor(Handle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
    return convert(value)


# Lanes behind a mask may overflow.

execute = interpreter.GridExecutor.__call__


def executor(self: Any, *args: Any, **kwargs: Any) -> Any:
    with np.errstate(all="ignore"):
        return execute(self, *args, **kwargs)


Builder.create_dot, Builder.cast_impl, Builder.create_fp_to_fp = dot, cast_impl, fp_to_fp
Builder.binary_op, Builder.get_bf16 = binary_op, get_bf16
Builder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
Builder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
tl.tensor.__init__, tl.block_type.__init__, interpreter._get_np_dtype = tensor, block, np_dtype
TritonSemantic.binary_op_sanitize_overflow_impl = lambda *_: None
interpreter._patch_lang = patch_lang
interpreter._implicit_cvt, interpreter.GridExecutor.__call__ = implicit, executor
sanitizer.install()


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """Behind each test, whether its kernels wrote whole what they began to write."""
    yield
    sanitizer.settle()
