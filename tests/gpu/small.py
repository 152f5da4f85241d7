"""Small kernels that the checkers are tested with: right or wrong by how they are launched, or apt to be misread."""

import triton
import triton.language as tl


@triton.jit
def copy(x, y, count, W: tl.constexpr):
    """Each program the same W numbers."""
    o = tl.arange(0, W)
    tl.store(y + o, tl.load(x + o, mask=o < count), mask=(o < count) & (W > 0))


@triton.jit
def copy_rows(x, y, x_row, y_row, W: tl.constexpr):
    """Each program a row."""
    o = tl.arange(0, W)
    tl.store(y + tl.program_id(0) * y_row + o, tl.load(x + tl.program_id(0) * x_row + o))


@triton.jit
def roll(x, shift):
    """x[i] = x[i + shift], a program each."""
    i = tl.program_id(0)
    tl.store(x + i, tl.load(x + (i + shift) % tl.num_programs(0)))


@triton.jit
def tally(x, y, W: tl.constexpr, ATOMIC: tl.constexpr):
    """A sum over programs."""
    o = tl.arange(0, W)
    value = tl.load(x + tl.program_id(0) * W + o)
    if ATOMIC:
        tl.atomic_add(y + o, value)
    else:
        tl.store(y + o, tl.load(y + o) + value)


@triton.jit
def crowd(x, W: tl.constexpr):
    """W numbers to W / 2 places."""
    o = tl.arange(0, W)
    tl.store(x + o // 2, o.to(tl.float32))


@triton.jit
def turned(x, W: tl.constexpr, BARRIER: tl.constexpr):
    """Written in one order and read in another."""
    o = tl.arange(0, W)
    tl.store(x + o, o.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    tl.store(x + W + o, tl.load(x + W - 1 - o))


@triton.jit
def through(x, y, H, W: tl.constexpr):
    """A tile of rows, by descriptors."""
    a = tl.make_tensor_descriptor(x, [H, W], [W, 1], [4, W])
    b = tl.make_tensor_descriptor(y, [H, W], [W, 1], [4, W])
    b.store([tl.program_id(0) * 4, 0], a.load([tl.program_id(0) * 4, 0]))


# Parts of the kernels, and wrong.


@triton.jit
def unmasked(o_r, ROWS, FEATURES: tl.constexpr, BF: tl.constexpr, f0=0):
    return (o_r >= 0)[:, None]


@triton.jit
def unbounded(o_r, R, o_e, E):
    return (o_r < R)[:, None] & (o_e >= 0)[None, :]


@triton.jit
def first_tile(pid, TILES, HEADS):
    return pid * 0, pid // TILES


# What the interpreter has to be mended for.


@triton.jit
def product(x, y, z, W: tl.constexpr):
    """z = x y, of squares."""
    o = tl.arange(0, W)[:, None] * W + tl.arange(0, W)[None, :]
    tl.store(z + o, tl.dot(tl.load(x + o), tl.load(y + o)))


@triton.jit
def pointwise(x, y, z, number, OP: tl.constexpr, W: tl.constexpr):
    """z = x op y, or x op a number that is an argument, or one that is a constant."""
    o = tl.arange(0, W)
    a, b = tl.load(x + o), tl.load(y + o)
    if OP == "add":
        c = a + b
    elif OP == "less":
        c = a < b
    elif OP == "negate":
        c = -a
    elif OP == "maximum":
        c = tl.maximum(a, b)
    elif OP == "minimum":
        c = tl.minimum(a, b)
    elif OP == "number":
        c = a * number
    elif OP == "constant":
        c = a * 0.1
    else:
        c = a
    tl.store(z + o, c)


@triton.jit
def loop(begin, end, z):
    """How often a loop from a loaded number to an argument turns."""
    count = 0
    for _ in range(tl.load(begin), end):
        count += 1
    tl.store(z, count)


@triton.jit
def twice(x):
    return 2 * x


@triton.jit
def nested(x, z, W: tl.constexpr):
    """A function that calls a function, and the language behind it."""
    o = tl.arange(0, W)
    tl.store(z + o, tl.sqrt(twice(tl.load(x + o))))
