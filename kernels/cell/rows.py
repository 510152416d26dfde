"""The rows of the tables that tell programs what to do, and the numbers of their columns.

All entries are int64: places in flat buffers are counted in numbers from the buffer's start.
"""

from typing import NamedTuple

import triton.language as tl


class Layer(NamedTuple):
    """A layer (ReLU, convolution) or a candidate without one, forward and backward.

    Attributes:
        kind: see below.
        source: where the input is: among the states, or among the z for second layers.
        height: of the input.
        width: of the input.
        stride: of the convolution or pool.
        dilation: of the convolution.
        kernel: its size.
        padding: its padding; -1 moves the input up and left (FactorizedReduce).
        cout: channels written.
        column: the first of them in z.
        spatial: depthwise weights, among the weights.
        product: pointwise or dense weights, likewise.
        z: the output, among the z.
        position: where a max pool notes which of its taps won, among the z.
        moments: partial moments of z.
        statistics: mean, then variance, of the norm behind z; -1 without a norm.
        frozen: whether those are given.
        inner: statistics of the norm that the input goes through first (second layers); of a pool,
            for csrc/cuda, the index of a row that reads the same z, -1 if there is none.
        inner_moments: its partial moments.
        inner_frozen: whether its statistics are given.
        edge: row of p and of g; -1 where the gradient is not that of a node.
        operation: column of p.
        gradient: gradient behind the norm, among the gradients.
        gradient_pitch: its numbers from pixel to pixel.
        sums: partial sums of that gradient, alone and times z.
        reached: room for the gradient before the product, among the gradients.
        inner_gradient: the gradient at the inner norm, likewise; of a preprocessed input, for
            csrc/cuda, what is to be added to its gradient, 0 if there is nothing.
        inner_sums: its partial sums.
    """

    kind: int = 0
    source: int = 0
    height: int = 1
    width: int = 1
    stride: int = 1
    dilation: int = 1
    kernel: int = 1
    padding: int = 0
    cout: int = 0
    column: int = 0
    spatial: int = 0
    product: int = 0
    z: int = 0
    position: int = 0
    moments: int = 0
    statistics: int = -1
    frozen: int = 0
    inner: int = -1
    inner_moments: int = 0
    inner_frozen: int = 0
    edge: int = -1
    operation: int = 0
    gradient: int = 0
    gradient_pitch: int = 1
    sums: int = 0
    reached: int = 0
    inner_gradient: int = 0
    inner_sums: int = 0


LAYER = tl.constexpr(len(Layer._fields))
(
    KIND, SOURCE, HEIGHT, WIDTH, STRIDE, DILATION, KERNEL, PADDING, COUT, COLUMN,
    SPATIAL, PRODUCT, Z, POSITION, MOMENTS, STATISTICS, FROZEN, INNER, INNER_MOMENTS, INNER_FROZEN,
    EDGE, OPERATION, GRADIENT, GRADIENT_PITCH, SUMS, REACHED, INNER_GRADIENT, INNER_SUMS,
) = (tl.constexpr(column) for column in range(len(Layer._fields)))  # fmt: skip

# Kinds: depthwise and pointwise, dense, the pools, identity, zero, channels that no candidate sees.
SEPARABLE, DENSE, MAXIMUM, AVERAGE, SKIP, NOTHING, BYPASS = map(tl.constexpr, range(7))


class Group(NamedTuple):
    """Consecutive rows of layers, and the state they have in common.

    Attributes:
        first: index of the first row.
        length: how many.
        state: the state, among the states.
        gradient: its gradient, among the gradients.
        shuffled: K where the gradient has the order of channels before the shuffle, else 1.
    """

    first: int
    length: int
    state: int
    gradient: int
    shuffled: int


GROUP = tl.constexpr(len(Group._fields))
GROUP_FIRST, GROUP_LENGTH, GROUP_STATE, GROUP_GRADIENT, GROUP_SHUFFLED = (
    tl.constexpr(column) for column in range(len(Group._fields))
)


class Pack(NamedTuple):
    """Consecutive rows of layers that read one input: what a program of csrc/cuda computes.

    Attributes:
        first: index of the first row.
        length: how many.
        pools: how many of them are pools, which come first.
    """

    first: int
    length: int
    pools: int


class Work:
    """What a program of csrc/cuda does.

    Attributes:
        FIRST: a pack of first layers and pools.
        SECOND: a pack of second layers.
        MIX: part of a node.
        SUMS: in the backward pass, a candidate's sums.
        INNER: a second layer.
        STATES: a group of rows.
        INPUT: a preprocessed input's sums.
    """

    FIRST, SECOND, MIX, SUMS, INNER, STATES, INPUT = range(7)


class Task(NamedTuple):
    """What a program for each chunk does, and what it waits for.

    Attributes:
        work: see `Work`.
        row: index of its row, among those of this work.
        first: index of the first `Wait`.
        length: how many.
        counter: what programs count up when they are done; of packs, the last program.
        arrivals: with what packs' programs find out who is the last.
    """

    work: int
    row: int
    first: int
    length: int
    counter: int
    arrivals: int = 0


class Wait(NamedTuple):
    """A program waits until a counter has come that far.

    Attributes:
        counter: which.
        count: how far.
    """

    counter: int
    count: int


class Mix(NamedTuple):
    """Part of every chunk of a node.

    Attributes:
        first: index of the first candidate's row.
        candidates: how many rows of candidates there are.
        rows: how many those of what goes past them included, which follow.
        state: the node, among the states.
        column: its first channel in the output; -1 if it is no part of it.
        part: which.
        parts: of how many.
    """

    first: int
    candidates: int
    rows: int
    state: int
    column: int
    part: int
    parts: int


class Part(NamedTuple):
    """A convolution of the preprocessing; FactorizedReduce has two, identity one without weights.

    Attributes:
        position: which input.
        cin: its channels; 0 where it is the state itself.
        cout: channels written.
        column: the first of them.
        stride: of the convolution.
        shift: pixels by which the input moves up and left.
        product: weights.
        z: output, among the scratch.
        moments: partial moments.
        statistics: of the norm.
        frozen: whether they are given.
        state: the normalized output, among the states.
        gradient: of the state, among the gradients.
        sums: of that gradient, alone and times the state.
    """

    position: int = 0
    cin: int = 0
    cout: int = 0
    column: int = 0
    stride: int = 1
    shift: int = 0
    product: int = 0
    z: int = 0
    moments: int = 0
    statistics: int = -1
    frozen: int = 0
    state: int = 0
    gradient: int = 0
    sums: int = 0


PART = tl.constexpr(len(Part._fields))
(
    PART_POSITION, PART_CIN, PART_COUT, PART_COLUMN, PART_STRIDE, PART_SHIFT, PART_PRODUCT, PART_Z,
    PART_MOMENTS, PART_STATISTICS, PART_FROZEN, PART_STATE, PART_GRADIENT, PART_SUMS,
) = (tl.constexpr(column) for column in range(len(Part._fields)))  # fmt: skip
