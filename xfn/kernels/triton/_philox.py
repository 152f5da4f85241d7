"""Philox-4x32: counters and a key in, bits out, the same ones as ``_core/philox.py`` draws."""

import triton
import triton.language as tl

M0: tl.constexpr = tl.constexpr(0xD2511F53)
M1: tl.constexpr = tl.constexpr(0xCD9E8D57)
W0: tl.constexpr = tl.constexpr(0x9E3779B9)
W1: tl.constexpr = tl.constexpr(0xBB67AE85)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1, ROUNDS: tl.constexpr):
    """Four words of bits; counters are uint32 tiles of one shape, k0 and k1 uint32 scalars."""
    for _ in tl.static_range(ROUNDS):
        a0, a2 = c0, c2
        c0 = tl.umulhi(a2, M1) ^ c1 ^ k0
        c2 = tl.umulhi(a0, M0) ^ c3 ^ k1
        c1 = a2 * M1
        c3 = a0 * M0
        k0 = k0 + W0
        k1 = k1 + W1
    return c0, c1, c2, c3


@triton.jit
def keep(k0, k1, threshold, i_h, o_m, eights, BM: tl.constexpr, BN: tl.constexpr):
    """Which weights survive dropout: lane n % 8 of Philox-4x32-7 at the counter (n // 8, m, h, 0), as 16 bits, is at
    least ``threshold``. ``eights [BN // 8]`` are n // 8."""
    zero = tl.zeros([BM, BN // 8], tl.uint32)
    c0 = zero + eights.to(tl.uint32)[None, :]
    c1 = zero + o_m.to(tl.uint32)[:, None]
    c2 = zero + i_h.to(tl.uint32)
    r0, r1, r2, r3 = philox(c0, c1, c2, zero, k0, k1, 7)
    words = tl.join(tl.join(r0, r2), tl.join(r1, r3))  # [BM, BN // 8, 2, 2]: word 2 a + b stands at (a, b)
    lanes = tl.join(words & 0xFFFF, words >> 16)
    return tl.reshape(lanes, [BM, BN]) >= threshold
