"""Running statistics of all norms of a cell.

update_running: grid (norms). Every norm's buffers are tensors of their own, wherever modules keep
them, and come as tuples of pointers: nothing on the device knows where they are, so they may move
from call to call. A program picks its norm's from them.
"""

import triton
import triton.language as tl


@triton.jit
def _picked(tensors, index):
    """Return the tensor of an index that is known when the program runs."""
    found = tensors[0]
    for other in tl.static_range(1, len(tensors)):
        found = tl.where(index == other, tensors[other], found)
    return found


@triton.jit
def update_running(
    table,
    statistics,
    means,
    variances,
    tracked,
    MOMENTUM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Move running statistics towards the batch's, and count the batch.

    Args:
        table: per norm where its statistics begin, its channels, and values per channel, int64.
        statistics: of the batch, per norm means, then biased variances.
        means: per norm.
        variances: per norm.
        tracked: per norm the number of batches; or none.
        MOMENTUM: None for the plain average over all batches.
        WIDE: the wider type of statistics and buffers, in which it is computed.
        BLOCK: channels at a time.
    """
    index = tl.program_id(0)
    mean = _picked(means, index)
    variance = _picked(variances, index)
    new = statistics + tl.load(table + 3 * index)
    channels = tl.load(table + 3 * index + 1)
    values = tl.load(table + 3 * index + 2).to(tl.float64)
    unbiased = values / (values - 1)
    share = tl.full((), 0, tl.float64)
    if MOMENTUM is not None:
        share += MOMENTUM
    if len(tracked) > 0:
        counter = _picked(tracked, index)
        count = tl.load(counter) + 1
        # All threads have read it before one of them writes.
        tl.debug_barrier()
        tl.store(counter, count)
        if MOMENTUM is None:
            share = 1 / count.to(tl.float64)
    kept = (1 - share).to(WIDE)
    for start in range(0, channels, BLOCK):
        c = start + tl.arange(0, BLOCK)
        known = c < channels
        found = tl.load(new + c, mask=known, other=0).to(WIDE) * share.to(WIDE)
        found += tl.load(mean + c, mask=known, other=0).to(WIDE) * kept
        tl.store(mean + c, found.to(mean.dtype.element_ty), mask=known)
        found = tl.load(new + channels + c, mask=known, other=0).to(WIDE)
        found = found * (share * unbiased).to(WIDE)
        found += tl.load(variance + c, mask=known, other=0).to(WIDE) * kept
        tl.store(variance + c, found.to(variance.dtype.element_ty), mask=known)
