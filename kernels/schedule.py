"""Launches that are made again and again, with other tensors each time.

What a driver launches depends on shapes, types and strides. It is put together once, with a `Slot`
wherever a tensor will be, and kept; every start after that only says where the tensors are. Triton
is asked at the first start, see `direct`.

What a driver makes itself and hands to kernels, such as tables, lies in memory that only launches
keep. A CUDA graph that has recorded them knows nothing but addresses: what is recorded stays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from operator import attrgetter, methodcaller
from typing import Any

from da2s_fast.kernels import direct
from da2s_fast.kernels.launch import CudaKernel, Launch, launched_by, on_device, starter

_DTYPE = attrgetter("dtype")
_ADDRESS, _DEVICE_INDEX = methodcaller("data_ptr"), methodcaller("get_device")


@dataclass(frozen=True)
class Slot:
    """A tensor, or a part of one, that is there when launches are started.

    Attributes:
        name: of the tensor among those given to `Schedule.start`.
        dtype: of its numbers.
        device: where it will be.
        shape: of the part; nothing is known of tensors of a list.
        strides: in numbers.
        offset: numbers before the part.
        whole: that it is no part.
        place: in the list of that name; None for what is no list.
    """

    name: Hashable
    dtype: Any
    device: Any
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    offset: int = 0
    whole: bool = True
    place: int | None = None

    def narrow(self, dim: int, start: int, length: int) -> Slot:
        """As `Tensor.narrow`."""
        shape = (*self.shape[:dim], length, *self.shape[dim + 1 :])
        offset = self.offset + start * self.strides[dim]
        return replace(self, shape=shape, offset=offset, whole=False)

    def stride(self) -> tuple[int, ...]:
        """As `Tensor.stride`."""
        return self.strides

    def filled(self, tensors: Mapping[Hashable, Any]) -> Any:
        """The tensor, or its part."""
        tensor = tensors[self.name] if self.place is None else tensors[self.name][self.place]
        if self.whole:
            return tensor
        start = tensor.storage_offset() + self.offset
        return tensor.as_strided(self.shape, self.strides, start)


def _slots(value: Any) -> Iterator[Slot]:
    if isinstance(value, Slot):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _slots(item)


def _filled(value: Any, tensors: Mapping[Hashable, Any]) -> Any:
    if isinstance(value, Slot):
        return value.filled(tensors)
    if isinstance(value, tuple):
        return tuple(_filled(item, tensors) for item in value)
    return value


class Schedule:
    """Launches, one after the other.

    Args:
        launches: with slots among their arguments, also inside tuples.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        self._launches = tuple(launches)
        slots = _distinct(launches)
        self._single = [slot for slot in slots if slot.place is None]
        self._lists = list(dict.fromkeys(slot.name for slot in slots if slot.place is not None))
        self._places = [(slot.name, slot.offset * slot.dtype.itemsize) for slot in self._single]
        # Operators take tensors.
        self._parts = _distinct([one for one in launches if isinstance(one.kernel, CudaKernel)])
        self._prepared: dict[Hashable, list[direct.Started | Launch]] = {}

    def start(self, tensors: Mapping[Hashable, Any]) -> None:
        """Start all of them on the current device's current stream, without waiting for them.

        Args:
            tensors: what the slots stand for, by name, tensors and lists of them.
        """
        start = starter()
        if start is not on_device or not direct.COMPILED or direct.is_watched():
            for launch in self._launches:
                start(_full(launch, tensors))
            return
        addresses = [tensors[name].data_ptr() + offset for name, offset in self._places]
        for name in self._lists:
            addresses += map(_ADDRESS, tensors[name])
        # All else that Triton compiles for is the same at every start.
        alignment = direct.alignment(addresses)
        prepared = self._prepared.get(alignment)
        if prepared is None:
            self._prepared[alignment] = [self._start_first(one, tensors) for one in self._launches]
            return
        parts = [slot.filled(tensors) for slot in self._parts]
        stream = direct.current_stream()
        for one in prepared:
            if isinstance(one, Launch):
                on_device(_full(one, tensors))
            else:
                one(addresses, parts, stream)

    def _start_first(
        self, launch: Launch, tensors: Mapping[Hashable, Any]
    ) -> direct.Started | Launch:
        """By Triton, which compiles; return how to do without it, or the launch if it must."""
        full = _full(launch, tensors)
        compiled = on_device(full)
        if isinstance(launch.kernel, CudaKernel):
            return direct.operator(launch, _numbered(self._parts))
        return direct.kernel(launch, full, compiled, self._numbers(tensors)) or launch

    def _numbers(self, tensors: Mapping[Hashable, Any]) -> dict[Slot, int]:
        """Which of the addresses each slot has."""
        starts, start = {}, len(self._single)
        for name in self._lists:
            starts[name] = start
            start += len(tensors[name])
        numbers = _numbered(self._single)
        for slot in _distinct(self._launches):
            if slot.place is not None:
                numbers[slot] = starts[slot.name] + slot.place
        return numbers


def _distinct(launches: Sequence[Launch]) -> list[Slot]:
    """The slots of launches, each once."""
    values = [value for launch in launches for value in launch.arguments.values()]
    return list(dict.fromkeys(slot for value in values for slot in _slots(value)))


def _numbered(slots: Sequence[Slot]) -> dict[Slot, int]:
    return {slot: number for number, slot in enumerate(slots)}


def _full(launch: Launch, tensors: Mapping[Hashable, Any]) -> Launch:
    """The launch with tensors in its slots."""
    arguments = {name: _filled(value, tensors) for name, value in launch.arguments.items()}
    return launch._replace(arguments=arguments)


def start(build: Callable[..., None], tensors: Mapping[Hashable, Any], *key: Hashable) -> None:
    """Start what `build(slots, *key)` launches, with tensors in the slots.

    Nothing is built twice where kernels are started on the device; others, such as tests, may
    change what is built.

    Args:
        build: launches by `kernels.launch.launch`, depending on its arguments alone.
        tensors: all that are there when the launches are started, by name: their addresses are
            unknown to `build`, which finds a slot under each name. Or lists of tensors, of one type
            on one device, of whose shapes and strides nothing is known either: tuples of slots.
            Tuples of tensors are lists of which the caller knows that they are of one type.
            Whoever calls keeps them for graphs; what caches own is for `build` to hand over.
        key: whatever else `build` has to know.

    Raises:
        ValueError: for a list of tensors of several types or devices.
    """
    kinds = []
    for name, value in tensors.items():
        if isinstance(value, list | tuple):
            kinds.append((name, len(value), *_kind_of(value)))
        else:
            kinds.append((name, None, value.dtype, value.device, value.shape, value.stride()))
    if direct.is_recorded():
        make = _recorded
    else:
        make = _kept if starter() is on_device and direct.COMPILED else _made
    make(build, tuple(kinds), key).start(tensors)


def _kind_of(tensors: Sequence[Any]) -> tuple[Any, ...]:
    """Type and device of all of them: there may be hundreds, so that each question is one loop."""
    if not tensors:
        return ()
    if isinstance(tensors, list):
        (_,), (_,) = set(map(_DTYPE, tensors)), set(map(_DEVICE_INDEX, tensors))
    return tensors[0].dtype, tensors[0].device


def _made(
    build: Callable[..., None], kinds: Sequence[tuple[Any, ...]], key: tuple[Hashable, ...]
) -> Schedule:
    launches: list[Launch] = []
    with launched_by(launches.append):
        build({name: _slots_of(name, *kind) for name, *kind in kinds}, *key)
    return Schedule(launches)


def _slots_of(name: Hashable, count: int | None, *kind: Any) -> Slot | tuple[Slot, ...]:
    if count is None:
        return Slot(name, *kind)
    return tuple([Slot(name, *kind, place=place) for place in range(count)])


_kept = lru_cache(maxsize=256)(_made)


@cache
def _recorded(
    build: Callable[..., None], kinds: Sequence[tuple[Any, ...]], key: tuple[Hashable, ...]
) -> Schedule:
    """What graphs record, at every recording the same: who records anew needs no more memory."""
    return _kept(build, kinds, key)


def forget() -> None:
    """Build everything anew, from now on; what graphs recorded until now is not to be replayed."""
    _kept.cache_clear()
    _recorded.cache_clear()
