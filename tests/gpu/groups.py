"""A Gluon kernel's own source, run by Python on the CPU: a thread per group of warps, torch's tensors for tiles.

What the hardware does beside its threads is as late as it may be. A copy spoils its tile at once and brings the numbers
when no thread can go on without them, or at once as well; a product is made, out of what is in memory then, when it is
waited for. So a tile shows that is used before it came or given back too soon, and so do threads that wait for one
another. Layouts, registers and the order of plain memory accesses are not looked at.
"""

import threading
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gluon
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language import constexpr
from triton.runtime.jit import JITFunction

from xfn.kernels.triton._tile import View


class Barrier:
    """In shared memory: a phase is over when all have arrived and all bytes have come."""

    def __init__(self) -> None:
        self.count = self.pending = self.bytes = self.over = 0

    def move(self, arrivals: int, come: int) -> None:
        self.pending -= arrivals
        self.bytes -= come
        assert self.pending >= 0, "more arrive than are expected"
        if not self.pending and not self.bytes:
            self.pending = self.count
            self.over += 1


class Shared:
    """A tile in shared memory, or a row of barriers."""

    def __init__(self, at: Any) -> None:
        self.at = at
        self.dtype = getattr(at, "dtype", None)

    def index(self, i: Any) -> Any:
        found = self.at[int(i)]
        return found if isinstance(found, Barrier) else Shared(found)

    def reshape(self, shape: Sequence[int]) -> "Shared":
        return Shared(self.at.view(shape))

    def permute(self, dims: Sequence[int]) -> "Shared":
        return Shared(self.at.permute(dims))

    def store(self, value: Tensor) -> None:
        self.at.copy_(value)


class Pointer:
    """Into a tensor's memory, and never out of it."""

    def __init__(self, t: Tensor, to: Any = 0) -> None:
        self.t, self.to = t, to

    def __add__(self, by: Any) -> "Pointer":
        return Pointer(self.t, self.to + by)

    def places(self) -> tuple[Tensor, Tensor]:
        storage = self.t.untyped_storage()
        flat = self.t.new_empty(0).set_(storage, 0, (storage.nbytes() // self.t.element_size(),), (1,))
        return flat, torch.as_tensor(self.to) + int(self.t.storage_offset())


class Descriptor:
    """What a kernel sees of a tensor that is fetched by boxes; what lies outside of it is zero."""

    def __init__(self, t: TensorDescriptor) -> None:
        self.dtype, self.layout, self.shape, self.block_shape = t.base.dtype, t.layout, t.shape, t.block_shape
        self.t = t.base.as_strided(t.shape, t.strides, t.base.storage_offset())
        self.block_type = SimpleNamespace(nbytes=t.base.element_size() * int(torch.tensor(t.block_shape).prod()))

    def box(self, at: Sequence[Any]) -> tuple[slice, ...]:
        return tuple(slice(int(o), int(o) + b) for o, b in zip(at, self.block_shape, strict=True))

    def read(self, at: Sequence[Any], into: Tensor) -> None:
        found = self.t[self.box(at)]
        into.zero_()[tuple(map(slice, found.shape))] = found

    def write(self, at: Sequence[Any], made: Tensor) -> None:
        into = self.t[self.box(at)]
        into.copy_(made[tuple(map(slice, into.shape))])


class Product:
    """One that is not yet waited for."""

    def __init__(self, a: Any, b: Shared, acc: Tensor) -> None:
        self.a, self.b, self.acc = a, b, acc
        self.value: Tensor | None = None

    def make(self) -> None:
        a = self.a.at if isinstance(self.a, Shared) else self.a
        self.value = self.acc + a.float() @ self.b.at.float()


class Machine:
    """Launches: ``machine(kernel)[grid](…)``."""

    def __init__(self, late: bool = True) -> None:
        self.late, self.turn = late, threading.Condition()
        self.functions: dict[Any, Any] = {}
        self.names = {gluon: self.language(), hopper: self.groups(), hopper.mbarrier: self.barriers()}
        self.names[hopper.tma] = self.copying()

    def __call__(self, kernel: Any) -> Any:
        return _Launcher(self, kernel)

    def run(self, kernel: Any, program: int, args: Sequence[Any], constants: dict[str, Any]) -> None:
        self.program, self.copies, self.waiting = torch.tensor(program), list[Callable[[], None]](), dict[int, Any]()
        self.alive, self.fault, self.own = 1, "", threading.local()
        self.own.products, self.own.stores = [], []
        self.python(kernel)(*args, **constants)

    def python(self, f: Any) -> Any:
        """A function of the kernel, with this machine for its language."""
        if f not in self.functions:
            code = f.fn.__code__
            self.functions[f] = made = FunctionType(code, {"__builtins__": __builtins__}, f.__name__, f.fn.__defaults__)
            known = {name: value for name, value in f.fn.__globals__.items() if name in code.co_names}
            made.__globals__.update({name: self.meant(value) for name, value in known.items()})
        return self.functions[f]

    def meant(self, value: Any) -> Any:
        if isinstance(value, ModuleType):
            return self.names.get(value, self.names[gluon])
        return self.python(value) if isinstance(value, JITFunction) else getattr(value, "value", value)

    # Threads, of which one runs at a time.

    def split(self, parts: Sequence[tuple[Any, Any]], *_: Any) -> None:
        threads = [threading.Thread(target=self.part, args=part) for part in parts]
        self.alive = len(threads)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.fault, self.fault

    def part(self, f: Any, args: Any) -> None:
        with self.turn:
            self.own.products, self.own.stores = [], []
            try:
                f(*args)
                assert not self.own.products, "products are left"
                assert not self.own.stores, "copies are left"
            except BaseException as error:
                self.fault = self.fault or f"{type(error).__name__}: {error}"
            self.alive -= 1
            self.turn.notify_all()

    def wait(self, ready: Callable[[], bool]) -> None:
        self.waiting[threading.get_ident()] = ready
        while not ready():
            assert not self.fault, self.fault
            if len(self.waiting) < self.alive or any(other() for other in self.waiting.values()):
                self.turn.wait()
            elif self.copies:
                self.copies.pop(0)()
                self.turn.notify_all()
            else:
                raise AssertionError("all wait for one another")
        del self.waiting[threading.get_ident()]

    # What the kernel calls.

    def barriers(self) -> SimpleNamespace:
        def init(barrier: Barrier, count: int) -> None:
            barrier.count = barrier.pending = count

        def expect(barrier: Barrier, come: int) -> None:
            barrier.bytes += come
            self.moved(barrier, 1, 0)

        wait = lambda barrier, phase: self.wait(lambda: barrier.over & 1 != phase)
        arrive = lambda barrier, count: self.moved(barrier, count, 0)
        return SimpleNamespace(init=init, expect=expect, wait=wait, arrive=arrive, MBarrierLayout=lambda: None)

    def moved(self, barrier: Barrier, arrivals: int, come: int) -> None:
        barrier.move(arrivals, come)
        if threading.current_thread() is not threading.main_thread():
            self.turn.notify_all()

    def copying(self) -> SimpleNamespace:
        def fetch(desc: Descriptor, at: Sequence[Any], barrier: Barrier, into: Shared) -> None:
            def come() -> None:
                desc.read(at, into.at)
                barrier.move(0, desc.block_type.nbytes)

            into.at.fill_(torch.nan)
            self.copies.append(come)
            if not self.late:
                self.copies.pop()()

        def store_wait(left: int) -> None:
            while len(self.own.stores) > left:
                desc, at, made = self.own.stores.pop(0)
                desc.write(at, made.at)

        put = lambda desc, at, made: self.own.stores.append((desc, at, made))
        return SimpleNamespace(
            async_copy_global_to_shared=fetch, async_copy_shared_to_global=put, store_wait=store_wait
        )

    def groups(self) -> SimpleNamespace:
        def product(a: Any, b: Shared, acc: Tensor, use_acc: bool = True, is_async: bool = False) -> Product:
            assert is_async
            self.own.products.append(Product(a, b, acc if use_acc else torch.zeros_like(acc)))
            return self.own.products[-1]  # type: ignore[no-any-return]

        def wait(left: int, deps: Sequence[Any]) -> Any:
            while len(self.own.products) > left:
                self.own.products.pop(0).make()
            found = tuple(d.value if isinstance(d, Product) else d for d in deps)
            return found if len(found) > 1 else found[0]

        return SimpleNamespace(warpgroup_mma=product, warpgroup_mma_wait=wait, fence_async_shared=lambda: None)

    def language(self) -> SimpleNamespace:
        def allocate(dtype: torch.dtype, shape: Sequence[int], _: Any) -> Shared:
            if dtype == torch.int64:
                return Shared([Barrier() for _ in range(shape[0])])
            return Shared(torch.full(shape, torch.nan, dtype=dtype))

        def load(p: Pointer) -> Tensor:
            flat, at = p.places()
            assert ((at >= 0) & (at < len(flat))).all(), "it reads outside of a tensor"
            return flat[at]

        def store(p: Pointer, value: Any, mask: Any = True) -> None:
            flat, at = p.places()
            at, value, mask = torch.broadcast_tensors(at, torch.as_tensor(value), torch.as_tensor(mask))
            assert ((at >= 0) & (at < len(flat)))[mask].all(), "it writes outside of a tensor"
            flat[at[mask]] = value[mask].to(flat.dtype)

        def highest(t: Tensor, dim: int) -> Tensor:
            return (t.where(~t.isnan(), -torch.inf) if t.is_floating_point() else t).amax(dim)

        tensors = lambda f: lambda a, b: f(torch.as_tensor(a), torch.as_tensor(b))
        layouts = ("BlockedLayout", "SliceLayout", "NVMMADistributedLayout", "DotOperandLayout")
        return SimpleNamespace(
            **dict.fromkeys(layouts, lambda *_: None), constexpr=constexpr, allocate_shared_memory=allocate, load=load,
            store=store, static_range=range, warp_specialize=self.split, program_id=lambda _: self.program,
            arange=lambda begin, end, _: torch.arange(begin, end), cdiv=lambda a, b: (a + b - 1) // b,
            zeros=lambda shape, dtype, _: torch.zeros(shape, dtype=dtype), convert_layout=lambda t, _: t,
            full=lambda shape, value, dtype, _: torch.full(shape, value, dtype=dtype), where=torch.where,
            maximum=tensors(torch.fmax), minimum=tensors(torch.fmin), exp2=torch.exp2, log2=torch.log2, abs=torch.abs,
            max=highest, min=torch.amin, sum=torch.sum, int32=torch.int32, int64=torch.int64, float32=torch.float32,
        )  # fmt: skip


class _Launcher:
    def __init__(self, machine: Machine, kernel: Any) -> None:
        self.machine, self.kernel = machine, kernel

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def seen(value: Any) -> Any:
            if isinstance(value, TensorDescriptor):
                return Descriptor(value)
            if isinstance(value, View):
                return value if value.data is None else value._replace(data=Pointer(value.data))
            return Pointer(value) if isinstance(value, Tensor) else value

        def launch(*args: Any, num_warps: int, **constants: Any) -> None:
            for program in range(*grid):
                self.machine.run(self.kernel, program, [seen(a) for a in args], constants)

        return launch
