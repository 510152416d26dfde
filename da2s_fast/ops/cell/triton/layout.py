"""Where the tensors inside a cell lie, in flat buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

from da2s_fast.ops.cell.operations import CONVS, DENSE, POOLS, SKIP
from da2s_fast.ops.cell.plan import EdgePlan, decode
from da2s_fast.ops.cell.triton.tiling import Tiling

Key = tuple[int, str, int]
"""(edge, operation, half): a layer's output; half is 0 for z1 of separable convolutions, else 1."""

_ALIGNMENT = 32  # numbers: whole sectors of every type
TF32_MARK = _ALIGNMENT
"""Numbers behind all others that backward is given where float32 was rounded to TF32. They hold
nothing: that they are there is known without a look at the device, whatever is allowed by then."""


class Room:
    """Hands out places in a buffer, from its start."""

    def __init__(self) -> None:
        self.used = 0

    def take(self, numbers: int) -> int:
        """A place for so many numbers."""
        place = self.used
        self.used += -(-numbers // _ALIGNMENT) * _ALIGNMENT
        return place


@dataclass(frozen=True)
class Layout(Tiling):
    """The places of a cell's tensors, which follow from its tiles and chunks.

    Args:
        plan, batch, sizes: see `Tiling`.
        save: whether every z has a place of its own; else those of a node's edges lie where
            another node's lay.

    Attributes:
        weights: where every weight of the flat list is among the weights.
        states: where every state is among the states, (pixels, C).
        z: where every layer's output is among the z, (pixels, C / K).
        pools: pooled tensors by (state, operation), likewise.
        positions: which tap won, by state, likewise.
        norms: where every norm's statistics are.
        moments: partial moments, (chunks, 2, channels), of layers and pools, and of inputs, whose
            chunks are others, see `input_chunks`.
        sums: partial sums of gradients, likewise; by edge, operation and half, and of inputs.
        reached: room for gradients before the product of layers: second layers of a node have
            their own, first layers one per edge and one for those that collect beside; those of
            other nodes lie there too, see `rooms`.
        inner: gradients at inner norms, likewise.
        gradients: of the states.
        beside: a second place for those of preprocessed inputs: the edges from an input go back one
            after the other, so in the end, when there is nothing else to be done, half of the last
            one's layers collect there.
    """

    save: bool

    @cached_property
    def weights(self) -> list[int]:
        """See the class; the last entry is their number."""
        places = [0]
        for shape in self.plan.weight_shapes([size[0] for size in self.sizes]):
            places.append(places[-1] + prod(shape))
        return places

    @cached_property
    def norms(self) -> list[int]:
        """See the class; the last entry is the length of all statistics."""
        places = [0]
        for channels in self.plan.norm_channels:
            places.append(places[-1] + 2 * channels)
        return places

    @cached_property
    def _states(self) -> tuple[list[int], int]:
        room = Room()
        places = [room.take(self.pixels(s) * self.plan.channels) for s in self.plan.states]
        return places, room.used

    @property
    def states(self) -> list[int]:
        """See the class."""
        return self._states[0]

    @property
    def states_size(self) -> int:
        """Numbers of all states."""
        return self._states[1]

    @property
    def halves(self) -> bool:
        """Whether FactorizedReduce is among the candidates."""
        return self.plan.reduction and SKIP in self.plan.operations

    @property
    def denses(self) -> bool:
        """Whether dense convolutions are among the layers of candidates."""
        return self.halves or any(name in DENSE for name in self.plan.operations)

    def layers(self, edge: EdgePlan) -> list[Key]:
        """The convolutions of an edge by key."""
        found: list[Key] = []
        for name in self.plan.candidates(edge):
            if name in CONVS and CONVS[name].twice:
                found.append((edge.row, name, 0))
            if name in CONVS or name in DENSE or (name == SKIP and edge.stride == 2):
                found.append((edge.row, name, 1))
        return found

    def first_layers(self, edge: EdgePlan) -> list[Key]:
        """Those of them that read the edge's state."""
        keys = self.layers(edge)
        return [
            (row, name, half) for row, name, half in keys if half == 0 or (row, name, 0) not in keys
        ]

    def layers_beside(self, edge: EdgePlan) -> list[Key]:
        """The first layers of an edge that collect what they hand its state beside the gradient."""
        if edge.target > self.plan.inputs or edge.source not in self.plan.preprocess_norms:
            return []
        separable = [key for key in self.first_layers(edge) if key[1] in CONVS]
        return separable[: len(separable) // 2]

    @cached_property
    def pooled(self) -> dict[tuple[int, str], list[int]]:
        """(state, pool) -> the nodes that use it, ascending."""
        found: dict[tuple[int, str], list[int]] = {}
        for edge in self.plan.edges:
            for name in self.plan.candidates(edge):
                if name in POOLS:
                    found.setdefault((edge.source, name), []).append(edge.target)
        return found

    @property
    def _one(self) -> int:
        return self.pixels(self.plan.inputs) * self.plan.mixed_channels

    @cached_property
    def _z(self) -> tuple[dict[Key, int], dict[tuple[int, str], int], dict[int, int], int]:
        room = Room()
        pools = {key: room.take(self._one) for key in self.pooled}
        positions = {s: room.take(self._one) for s, name in self.pooled if name.startswith("max")}
        shared, most = room.used, room.used
        z: dict[Key, int] = {}
        for node in self.plan.states[self.plan.inputs :]:
            if not self.save:
                room.used = shared
            for edge in self.plan.entering(node):
                z |= {key: room.take(self._one) for key in self.layers(edge)}
            most = max(most, room.used)
        # Before the first z is there, what the inputs' convolutions return has its place.
        return z, pools, positions, max(most, self.prepared[1])

    @property
    def z(self) -> dict[Key, int]:
        """See the class."""
        return self._z[0]

    @property
    def pools(self) -> dict[tuple[int, str], int]:
        """See the class."""
        return self._z[1]

    @property
    def positions(self) -> dict[int, int]:
        """See the class."""
        return self._z[2]

    @property
    def z_size(self) -> int:
        """Numbers of all z."""
        return self._z[3]

    @cached_property
    def prepared(self) -> tuple[dict[int, int], int]:
        """Where the inputs' convolutions go among the z, by position, and their numbers."""
        room = Room()
        numbers = self.pixels(0) * self.plan.channels
        return {i: room.take(numbers) for i in self.plan.preprocess_norms}, room.used

    @cached_property
    def _moments(self) -> tuple[dict[Key, int], dict[tuple[int, str], int], list[int], int]:
        room = Room()
        one = 2 * self.chunks * self.plan.mixed_channels
        layers = {key: room.take(one) for edge in self.plan.edges for key in self.layers(edge)}
        pools = {key: room.take(one) for key in self.pooled}
        one = 2 * self.input_chunks * self.plan.channels
        inputs = [room.take(one) for _ in self.plan.preprocess]
        return layers, pools, inputs, room.used

    @property
    def moments(self) -> dict[Key, int]:
        """Of layers, see the class."""
        return self._moments[0]

    @property
    def pool_moments(self) -> dict[tuple[int, str], int]:
        """Of pools, see the class."""
        return self._moments[1]

    @property
    def input_moments(self) -> list[int]:
        """Of the preprocessing, see the class; from the first of them on."""
        return [place - self.input_moments_start for place in self._moments[2]]

    @property
    def input_moments_start(self) -> int:
        """Where they begin, behind all others."""
        return self._moments[2][0]

    @property
    def moments_size(self) -> int:
        """Numbers of all moments."""
        return self._moments[3]

    @property
    def rooms(self) -> int:
        """How many nodes' gradients there is room for: of two that are worked on at once.

        Where z are computed again, it is one node after the other.
        """
        return 2 if self.save else 1

    @cached_property
    def _gradients(
        self,
    ) -> tuple[list[int], dict[int, int], dict[Key, int], dict[Key, int], int]:
        room = Room()
        states = [room.take(self.pixels(s) * self.plan.channels) for s in self.plan.states]
        beside = {
            edge.source: room.take(self.pixels(edge.source) * self.plan.channels)
            for edge in self.plan.entering(self.plan.inputs)
            if self.layers_beside(edge)
        }
        reached: dict[Key, int] = {}
        inner: dict[Key, int] = {}
        nodes = self.plan.states[: self.plan.inputs - 1 : -1]
        most = room.used
        for own in range(self.rooms):
            start = most
            for node in nodes[own :: self.rooms]:
                room.used = start  # those of one node after the other
                for edge in self.plan.entering(node):
                    layers = self.layers(edge)
                    second = [(edge.row, name, 1) for _, name, half in layers if half == 0]
                    reached |= dict.fromkeys(layers, room.take(self._one))
                    if beside_too := self.layers_beside(edge):
                        reached |= dict.fromkeys(beside_too, room.take(self._one))
                    reached |= {key: room.take(self._one) for key in second}
                    inner |= {key: room.take(self._one) for key in layers if key[2] == 0}
                most = max(most, room.used)
        return states, beside, reached, inner, most

    @property
    def gradients(self) -> list[int]:
        """Of the states, see the class."""
        return self._gradients[0]

    @property
    def beside(self) -> dict[int, int]:
        """See the class."""
        return self._gradients[1]

    @property
    def reached(self) -> dict[Key, int]:
        """See the class."""
        return self._gradients[2]

    @property
    def inner(self) -> dict[Key, int]:
        """See the class."""
        return self._gradients[3]

    @property
    def gradients_size(self) -> int:
        """Numbers of all gradients."""
        return self._gradients[4]

    @cached_property
    def _sums(self) -> tuple[dict[Key, int], list[int], list[int], int]:
        room = Room()
        one = 2 * self.image_chunks * self.plan.mixed_channels
        keys: list[Key] = []
        for edge in self.plan.edges:
            keys += [(edge.row, name, 1) for name in self.plan.candidates(edge)]
            keys += [key for key in self.layers(edge) if key[2] == 0]
        layers = {key: room.take(one) for key in keys}
        bypasses = [room.take(one) for _ in self.plan.edges]
        one = 2 * self.image_chunks * self.plan.channels
        inputs = [room.take(one) for _ in self.plan.preprocess]
        return layers, bypasses, inputs, room.used

    @property
    def sums(self) -> dict[Key, int]:
        """Of candidates and inner norms, see the class."""
        return self._sums[0]

    @property
    def bypass_sums(self) -> list[int]:
        """Of what goes past an edge's candidates."""
        return self._sums[1]

    @property
    def input_sums(self) -> list[int]:
        """Of the inputs' norms."""
        return self._sums[2]

    @property
    def sums_size(self) -> int:
        """Numbers of all sums."""
        return self._sums[3]

    @cached_property
    def counters(self) -> int:
        """More, as a power of two, than csrc/cuda's kernels need for their tasks.

        One for tickets, three for every state before every node, one for every state, and one for
        every pack of layers and pools.
        """
        states = self.plan.states
        pairs = sum(states[self.plan.inputs :])
        most = 1 + 3 * pairs + len(states) + len(self.moments) + len(self.pool_moments)
        return 1 << most.bit_length()

    @property
    def saved_size(self) -> int:
        """What backward is given: weights, states and, if they are saved, the z."""
        return self.z_start + (self.z_size if self.save else 0)

    @property
    def states_start(self) -> int:
        """Where the states begin in what backward is given."""
        return -(-self.weights[-1] // _ALIGNMENT) * _ALIGNMENT

    @property
    def z_start(self) -> int:
        """Where the z begin in what backward is given."""
        return self.states_start + self.states_size


@lru_cache(maxsize=256)
def layout_of(
    code: tuple[int, ...], batch: int, sizes: tuple[tuple[int, ...], ...], save: bool
) -> Layout:
    """The layout for an encoded plan."""
    return Layout(decode(code), batch, sizes, save)


def saved_size(
    code: Sequence[int], batch: int, sizes: Sequence[int], save: bool, tf32: bool
) -> int:
    """`cell_saved_size` for GPUs; tf32: whether float32 may be rounded."""
    shapes = tuple(tuple(sizes[i : i + 3]) for i in range(0, len(sizes), 3))
    return layout_of(tuple(code), batch, shapes, save).saved_size + TF32_MARK * tf32
