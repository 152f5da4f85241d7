"""Every access of an interpreted kernel, looked at: that it is in bounds, of what was written, and disturbs no other.

``install`` does so to all launches of a process. A pointer carries in its upper bits which argument it comes from, so
that an access is held to the view that it was given, also where other numbers lie beside it in memory. Programs of a
launch run in any order, so what one of them writes no other may read or write, unless both do so atomically.
"""

import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton.runtime.interpreter as interpreter
from torch import Tensor

Array = Any
BITS = 48
ADDRESS = np.uint64((1 << BITS) - 1)
"""What of a pointer is its address; the bits above are the number of its argument."""
NOBODY, SEVERAL = -1, -2


class Broken(Exception):
    """A kernel did what no kernel may do."""


# Memory that nobody has written yet.


class Fresh:
    """Memory as ``torch.empty`` gave it, and which of its elements kernels have written since."""

    def __init__(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        self.start, self.item, self.version = storage.data_ptr(), t.element_size(), t._version
        self.written = np.zeros(storage.nbytes() // self.item, bool)
        self.tensor = weakref.ref(t, self.forget)

    def forget(self, _: Any) -> None:
        if FRESH.get(self.start) is self:
            del FRESH[self.start]

    def places(self, addresses: Array) -> Array:
        return (addresses - self.start) // self.item

    @property
    def whole(self) -> bool:
        """All is written, or torch has written to it, which leaves no trace of where."""
        t = self.tensor()
        return bool(self.written.all()) or (t is not None and t._version != self.version)


FRESH: dict[int, Fresh] = {}
BEGUN: dict[Fresh, tuple[str, Tensor | None]] = {}
"""What is fresh, by its address; what kernels have begun to write, and is kept until ``settle`` looks at it."""


def noted(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.empty`` and its like."""

    def made(*args: Any, **kwargs: Any) -> Tensor:
        t = make(*args, **kwargs)
        if type(t) is Tensor and t.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(t):
            found = Fresh(t)
            if found.start:
                FRESH[found.start] = found
        return t

    return made


def settle() -> None:
    """What kernels began to write they have written whole."""
    left = [f"element {fresh.written.argmin()} of {name}" for fresh, (name, _) in BEGUN.items() if not fresh.whole]
    BEGUN.clear()
    if left:
        raise Broken(f"never written: {', '.join(left)}")


# One launch.


class View:
    """A tensor of a launch: where its elements lie."""

    def __init__(self, name: str, t: Any) -> None:
        self.name, self.start, self.item = name, t.data_ptr(), t.element_size()
        self.inside = inside(tuple(t.shape), tuple(t.stride()))
        self.end = self.start + len(self.inside) * self.item
        fresh = FRESH.get(getattr(t, "base", t).untyped_storage().data_ptr())
        self.fresh = fresh if fresh and not fresh.whole else None
        self.block: Any = None

    def check(self, addresses: Array) -> None:
        """They are those of elements."""
        places, rest = np.divmod(addresses - self.start, self.item)
        out = (places < 0) | (places >= len(self.inside)) | (rest != 0)
        if not out.any():
            out = ~self.inside[places]
        if out.any():
            raise Broken(f"out of bounds: element {places[out][0]} of {self.name}, of {len(self.inside)}")


@lru_cache(4096)
def inside(shape: tuple[int, ...], stride: tuple[int, ...]) -> Array:
    """Which places, from the first element to the last, hold one."""
    count = 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    found = np.zeros(count, bool)
    if count:
        steps = [step * found.itemsize for step in stride]
        np.lib.stride_tricks.as_strided(found, shape, steps)[...] = True
    return found


class Block:
    """Memory that arguments share: which turn wrote each cell, and which read it."""

    def __init__(self, views: list[View]) -> None:
        self.start, self.cell = views[0].start, min(v.item for v in views)
        count = (max(v.end for v in views) - self.start) // self.cell
        self.writer, self.reader = np.full((2, count), NOBODY)
        self.atomic = np.zeros(count, bool)
        for view in views:
            view.block = self

    def cells(self, addresses: Array, item: int) -> Array:
        first = (addresses - self.start) // self.cell
        return first if item == self.cell else (first[:, None] + np.arange(item // self.cell)).ravel()


class Launch:
    """A kernel at work. A program's turns are numbered: it takes one, and one more behind each barrier."""

    def __init__(self, kernel: str, names: dict[Any, str]) -> None:
        self.kernel, self.names = kernel, names
        self.views: list[View] = []
        self.programs: list[tuple[int, ...]] = []
        self.first = 0

    def take(self, t: Any) -> int:
        """An argument; the number that its pointers bear."""
        self.views.append(View(self.names.get(which(t), "an argument"), t))
        return len(self.views)

    def begin(self, *program: int) -> None:
        if not self.programs:
            self.share()
        self.first = len(self.programs)
        self.programs.append(program)

    def share(self) -> None:
        """Views that overlap have one block."""
        apart: list[list[View]] = []
        for view in sorted((v for v in self.views if v.end > v.start), key=lambda v: v.start):
            if apart and view.start < max(v.end for v in apart[-1]):
                apart[-1].append(view)
            else:
                apart.append([view])
        for views in apart:
            Block(views)

    def barrier(self) -> None:
        self.programs.append(self.programs[-1])

    def touched(self, pointers: Array, mask: Array) -> Iterator[tuple[View, Array, Array]]:
        """The views behind the lanes that are on, with their addresses and cells."""
        lanes = pointers[np.broadcast_to(mask.astype(bool), pointers.shape)]  # what & gives may be integers
        numbers = lanes >> np.uint64(BITS)
        for number in np.unique(numbers):
            if not 1 <= number <= len(self.views):
                raise Broken("out of bounds: a pointer that is of no argument")
            view, addresses = self.views[int(number) - 1], (lanes[numbers == number] & ADDRESS).astype(np.int64)
            view.check(addresses)
            yield view, addresses, view.block.cells(addresses, view.item)

    def refuse(self, bad: Array, view: View, cells: Array, what: str, turns: Array | None = None) -> None:
        if bad.any():
            place = (cells[bad][0] * view.block.cell + view.block.start - view.start) // view.item
            other = "" if turns is None else f" {self.who(turns[bad][0])}"
            raise Broken(f"{what.format(f'element {place} of {view.name}')}{other}")

    def who(self, turn: int) -> str:
        return "others" if turn == SEVERAL else f"program {self.programs[turn]}"

    def others(self, turns: Array) -> Array:
        """Which turns are of other programs than this one."""
        return (turns != NOBODY) & (turns < self.first)

    def load(self, pointers: Array, mask: Array) -> None:
        turn = len(self.programs) - 1
        for view, addresses, cells in self.touched(pointers, mask):
            block = view.block
            writer, reader = block.writer[cells], block.reader[cells]
            self.refuse(self.others(writer), view, cells, "race: it reads {}, which is written by", writer)
            own = (writer == turn) & ~block.atomic[cells]
            self.refuse(own, view, cells, "race: it reads {}, which it wrote itself, with no barrier between")
            if view.fresh:
                blank = ~view.fresh.written[view.fresh.places(addresses)]
                self.refuse(blank, view, block.cells(addresses, block.cell), "never written: it reads {}")
            block.reader[cells] = np.where(self.others(reader), SEVERAL, turn)

    def store(self, pointers: Array, mask: Array, atomic: bool = False) -> None:
        turn = len(self.programs) - 1
        for view, addresses, cells in self.touched(pointers, mask):
            block = view.block
            writer, reader = block.writer[cells], block.reader[cells]
            clash = self.others(writer) & ~(block.atomic[cells] & atomic)
            self.refuse(clash, view, cells, "race: it writes {}, which is written by", writer)
            self.refuse(self.others(reader), view, cells, "race: it writes {}, which is read by", reader)
            if not atomic and len(np.unique(cells)) < len(cells):
                first = np.unique(cells, return_index=True)[1]
                again = ~np.isin(np.arange(len(cells)), first)
                self.refuse(again, view, cells, "race: it writes {} twice at once")
            block.writer[cells], block.atomic[cells] = turn, atomic
            if view.fresh:
                view.fresh.written[view.fresh.places(addresses)] = True
                BEGUN.setdefault(view.fresh, (f"{view.name} of {self.kernel}", view.fresh.tensor()))


def which(t: Any) -> Any:
    return t.data_ptr(), tuple(t.shape), tuple(t.stride())


def named(name: str, value: Any) -> Iterator[tuple[Any, str]]:
    """All tensors of an argument."""
    if isinstance(value, tuple):
        for field, part in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
            yield from named(f"{name}.{field}", part)
    elif isinstance(value, interpreter.TensorDescriptor):
        yield from named(name, value.base)
    elif hasattr(value, "data_ptr"):
        yield which(value), name


# The interpreter, watched.

launch = Launch("", {})


def install() -> None:
    """From now on, in this process."""
    builder: Any = interpreter.InterpreterBuilder
    run, convert = interpreter.GridExecutor.__call__, interpreter._implicit_cvt
    load, store, add, swap = (
        getattr(builder, f"create_{name}") for name in ("masked_load", "masked_store", "atomic_rmw", "atomic_cas")
    )
    turn, barrier = builder.set_grid_idx, builder.create_barrier

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        global launch
        given = [*zip(self.arg_names, args, strict=False), *kwargs.items()]
        launch = Launch(self.fn.__name__, dict(pair for name, value in given for pair in named(name, value)))
        try:
            return run(self, *args, **kwargs)
        except interpreter.InterpreterError as error:
            BEGUN.clear()
            cause: BaseException | None = error
            while isinstance(cause, interpreter.InterpreterError):
                cause = cause.__cause__
            if isinstance(cause, Broken):
                raise Broken(f"{launch.kernel}, program {launch.programs[-1]}: {cause}") from None
            raise

    def converted(value: Any) -> Any:
        found = convert(value)
        if hasattr(value, "data_ptr"):
            found.handle.data |= np.uint64(launch.take(value) << BITS)
        return found

    def plain(pointers: Any) -> Any:
        return interpreter.TensorHandle(pointers.data & ADDRESS, pointers.dtype)

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        launch.load(pointers.data, np.asarray(mask.data))
        return load(self, plain(pointers), mask, *rest, **more)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launch.store(pointers.data, np.asarray(mask.data))
        return store(self, plain(pointers), value, mask, *rest)

    def atomic_rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launch.store(pointers.data, np.asarray(mask.data), atomic=True)
        return add(self, op, plain(pointers), value, mask, *rest)

    def atomic_cas(self: Any, pointers: Any, *rest: Any) -> Any:
        launch.store(pointers.data, np.ones_like(pointers.data, bool), atomic=True)
        return swap(self, plain(pointers), *rest)

    def set_grid_idx(self: Any, *program: int) -> None:
        launch.begin(*program)
        turn(self, *program)

    def create_barrier(self: Any) -> Any:
        launch.barrier()
        return barrier(self)

    for made in (masked_load, masked_store, atomic_rmw, atomic_cas):
        setattr(builder, f"create_{made.__name__}", made)
    builder.set_grid_idx, builder.create_barrier = set_grid_idx, create_barrier
    interpreter.GridExecutor.__call__, interpreter._implicit_cvt = watched, converted
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted"):
        setattr(torch, name, noted(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        setattr(Tensor, name, noted(getattr(Tensor, name)))
