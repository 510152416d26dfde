"""What the kernels of the cell share: pixels, products over channels, sums over chunks.

A chunk is PIXELS * tiles_per_chunk pixels one after the other, in the backward pass whole images;
CHUNKS, a power of two, cover a batch, the last of them perhaps with fewer pixels or none.
"""

import triton
import triton.language as tl


@triton.jit
def split(pixel, height, width):
    """Return image, row and column of pixels.

    Heights and widths are constants of the kernels: quotients by others take dozens of
    instructions, for every pixel.
    """
    row = pixel // width
    return row // height, row % height, pixel % width


@triton.jit
def place_of(field):
    """Load from a table where a tensor begins: a multiple of 32, so that reads can be wide."""
    return tl.multiple_of(tl.load(field), 32)


@triton.jit
def rectified(values):
    """Return ReLU; NaN stays NaN."""
    return tl.where(values <= 0, 0, values)


@triton.jit
def through_relu(gradient, values):
    """Return the gradient where the values before ReLU are positive or NaN, else 0."""
    return tl.where(values <= 0, 0, gradient)


@triton.jit
def beats(values, best):
    """Return where values take the place of the best so far, as in PyTorch's max pools."""
    return (values > best) | (values != values)  # noqa: PLR0124 - NaN


@triton.jit
def times(left, right):
    """Return products for tl.sum, each rounded by itself; both of one shape.

    Compilers fuse a multiplication with the addition behind it, the first of a sum's. Threads that
    hold copies of one sum would then each have another product unrounded in it, and end with
    different last bits. This multiplication is fused already.
    """
    return tl.fma(left, right, tl.zeros(left.shape, left.dtype))


@triton.jit
def nearest_tf32(values):
    """Return float32 rounded to the digits of TF32; NaN and infinities stay.

    Tensor cores do not look at the other 13 bits: every factor would lose the same way, and sums
    would be off by more than those of float16, which has as many digits.
    """
    bits = values.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # The bits of a NaN may carry into its sign.
    return tl.where(values == values, rounded, values)  # noqa: PLR0124


@triton.jit
def product(left, right, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """Return the matrix product of (m, k) and (k, n), without tensor shapes where DOT is not.

    With PRECISION "tf32" tensor cores take it, from numbers rounded to TF32; "ieee" is float32.
    """
    if DOT:
        if PRECISION == "tf32":
            left = nearest_tf32(left)
            right = nearest_tf32(right)
        return tl.dot(left, right, input_precision=PRECISION, out_dtype=left.dtype)
    else:
        left, right = tl.broadcast(left[:, :, None], right[None, :, :])
        return tl.sum(times(left, right), axis=1)


@triton.jit
def load_pixels(base, at, pitch, channel, live, known):
    """Load (pixels, channels) in the arithmetic's type; 0 where pixel or channel is not there."""
    return tl.load(
        base + at[:, None] * pitch + channel[None, :],
        mask=live[:, None] & known[None, :],
        other=0.0,
    )


@triton.jit
def store_pixels(base, at, pitch, channel, live, known, values):
    """Store (pixels, channels)."""
    tl.store(
        base + at[:, None] * pitch + channel[None, :],
        values,
        mask=live[:, None] & known[None, :],
    )


@triton.jit
def chunk_sizes(pixels, tiles_per_chunk, PIXELS: tl.constexpr, CHUNKS: tl.constexpr):
    """Return how many pixels every chunk has, (CHUNKS,) float64."""
    before = tl.arange(0, CHUNKS) * (tiles_per_chunk * PIXELS)
    return tl.minimum(tl.maximum(pixels - before, 0), tiles_per_chunk * PIXELS).to(tl.float64)


@triton.jit
def share_of(pixels):
    """Return 1 / pixels, float64; Triton makes a number of 1 that it is given a constant."""
    return 1 / tl.full((), pixels, tl.float64)


@triton.jit
def start_counters(counters, COUNTERS: tl.constexpr):
    """Set so many counters of a kernel of csrc/cuda to 0, if there are any; a power of two."""
    if counters is not None:  # noqa: SIM102 - known when compiled, the other is not
        if (tl.program_id(0) == 0) & (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
            tl.store(counters + tl.arange(0, COUNTERS), tl.zeros((COUNTERS,), tl.int32))


@triton.jit
def own_pixels(chunk, images, size, pixels):
    """Return the first pixel of a chunk of whole images, and the one behind it."""
    first = tl.minimum(chunk * images * size, pixels)
    return first, tl.minimum(first + images * size, pixels)


@triton.jit
def moments_of_tile(values, live):
    """Return number of pixels, mean and squared deviations of a tile's channels, in float64.

    Deviations are taken from the tile's own mean: no digits cancel.
    """
    count = tl.sum(live.to(tl.int32), axis=0)
    mean = tl.sum(tl.where(live[:, None], values, 0), axis=0) / count.to(values.dtype)
    deviation = tl.where(live[:, None], values - mean[None, :], 0)
    squares = tl.sum(times(deviation, deviation), axis=0).to(tl.float64)
    # What rounding took from the mean is what deviations from it still sum to.
    count = count.to(tl.float64)
    missing = tl.sum(deviation, axis=0).to(tl.float64) / count
    return count, mean.to(tl.float64) + missing, squares - count * missing * missing


@triton.jit
def merge_moments(count, mean, squares, more, its_mean, its_squares):
    """Return the moments of two sets of values from those of each (Chan et al.)."""
    total = count + more
    difference = its_mean - mean
    # A first set of nothing must not bring 0 * infinity.
    mean = tl.where(count > 0, mean + difference * (more / total), its_mean)
    between = tl.where(count > 0, difference * difference * (count * more / total), 0)
    return total, mean, squares + its_squares + between


@triton.jit
def add_pairs(left, also_left, right, also_right):
    """Add two sums at once."""
    return left + right, also_left + also_right


@triton.jit
def moments_around(center, moments, channel, known, width, sizes, CHUNKS: tl.constexpr):
    """Return what merging adds up over chunks, (CHUNKS, channels) each, from (CHUNKS, 2, width).

    These are a chunk's deviations from `center`, and their squares.
    """
    size = sizes[:, None]
    at = moments + tl.arange(0, CHUNKS)[:, None] * (2 * width) + channel[None, :]
    there = (size > 0) & known[None, :]
    means = tl.load(at, mask=there, other=0.0)
    squares = tl.load(at + width, mask=there, other=0.0)
    off = tl.where(there, means - center[None, :], 0)
    weighed = times(tl.broadcast_to(size, off.shape), off)
    return weighed, tl.fma(weighed, off, squares)


@triton.jit
def moments_from(center, weighed, squares, share):
    """Return mean and biased variance from what `moments_around` returns for all chunks."""
    # Both come from one exchange between threads.
    shift, total = tl.reduce((weighed, squares), 0, add_pairs)
    shift = times(shift, tl.broadcast_to(share, shift.shape))
    variance = tl.fma(-shift, shift, times(total, tl.broadcast_to(share, total.shape)))
    return center + shift, tl.where(variance < 0, 0, variance)


@triton.jit
def merged_moments(moments, channel, known, width, sizes, share, CHUNKS: tl.constexpr):
    """Return mean and biased variance from the chunks' partial (CHUNKS, 2, width) moments."""
    # Around the first chunk's mean, so that sums over chunks are those of small numbers.
    center = tl.load(moments + channel, mask=known, other=0.0)
    weighed, squares = moments_around(center, moments, channel, known, width, sizes, CHUNKS)
    return moments_from(center, weighed, squares, share)


@triton.jit
def norm(
    statistics,
    place,
    given,
    moments,
    channel,
    known,
    width,
    sizes,
    share,
    writes,
    EPS: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Return mean and 1 / sqrt(variance + eps) of a norm.

    Given:
        statistics: of all norms, means then variances of each.
        place: where this norm's are.
        given: whether they are there already; else they are merged from `moments`.
        moments: partial moments.
        channel: channels wanted.
        known: which of them there are.
        width: channels of the norm.
        sizes: of the chunks of the launch that wrote the moments, see `chunk_sizes`.
        share: `share_of` the batch's pixels: a quotient that those with many norms take once.
        writes: whether this program writes down what it merged.
    """
    at = statistics + place + channel
    if given:
        mean = tl.load(at, mask=known, other=0.0)
        variance = tl.load(at + width, mask=known, other=0.0)
    else:
        exact_mean, exact_variance = merged_moments(
            moments, channel, known, width, sizes, share, CHUNKS
        )
        mean, variance = written_down(exact_mean, exact_variance, at, known, width, writes)
    return mean, inverse_deviation(variance, EPS)


@triton.jit
def written_down(exact_mean, exact_variance, at, known, width, writes):
    """Return statistics as those who read them later will have them."""
    # Rounded before use: backward and a second forward read what is written here.
    mean = exact_mean.to(at.dtype.element_ty)
    variance = exact_variance.to(at.dtype.element_ty)
    if writes:
        tl.store(at, mean, mask=known)
        tl.store(at + width, variance, mask=known)
    return mean, variance


@triton.jit
def inverse_deviation(variance, EPS: tl.constexpr):
    """Return 1 / sqrt(variance + eps) in the variance's type.

    Roots and quotients in double precision take dozens of instructions, which most GPUs have few
    units for, and every program of a tile needs some of these. From what single precision has for
    it, a step of Newton's method in double precision leads to more digits than single has.
    """
    exact = variance.to(tl.float64) + EPS
    if variance.dtype == tl.float64:
        return 1 / tl.sqrt(exact)
    rough = tl.rsqrt(exact.to(tl.float32)).to(tl.float64)
    better = rough * (1.5 - 0.5 * exact * rough * rough)
    # Of an infinite variance the rough one is 0, and 0 * infinity no number.
    return tl.where(rough == 0, rough, better).to(variance.dtype)


@triton.jit
def chunk_sum(
    partial, channel, known, width, CHUNKS: tl.constexpr, AT_ONCE: tl.constexpr = 8
):  # fmt: skip
    """Return the sum over chunks of (CHUNKS, 2, width) partial sums, float64.

    AT_ONCE chunks are read at a time. The more, the less is waited for memory, but they take the
    registers of those who ask.
    """
    several: tl.constexpr = min(CHUNKS, AT_ONCE)
    at = partial + tl.arange(0, several)[:, None] * (2 * width) + channel[None, :]
    total = tl.zeros((several, channel.shape[0]), tl.float64)
    for _ in range(0, CHUNKS, several):
        total += tl.load(at, mask=known[None, :], other=0.0).to(tl.float64)
        at += several * 2 * width
    return tl.sum(total, axis=0)
