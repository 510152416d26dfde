"""Through a norm, backward: dz = a (G - shift - (z - mean) slope), an affine map in registers."""

import triton
import triton.language as tl

from da2s_fast.kernels.cell.common import chunk_sum, inverse_deviation
from da2s_fast.kernels.cell.rows import EDGE, FROZEN, OPERATION, STATISTICS, SUMS


@triton.jit
def weight_of(p_weights, g_weights, edge, operation, operations, dtype: tl.constexpr):
    """Return g_e p_eo."""
    scale = tl.load(p_weights + edge * operations + operation).to(dtype)
    if g_weights is not None:
        scale = scale * tl.load(g_weights + edge).to(dtype)
    return scale


@triton.jit
def coefficients(
    row,
    p_weights,
    g_weights,
    operations,
    statistics,
    sums,
    c,
    own,
    channels,
    pixels,
    EPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    AT_ONCE: tl.constexpr = 8,
):
    """Return scale, mean, shift and slope of a norm's backward pass, per channel."""
    dtype: tl.constexpr = statistics.dtype.element_ty
    place = tl.load(row + STATISTICS)
    edge = tl.load(row + EDGE)
    scale = tl.full((c.shape[0],), 1, dtype)
    if edge >= 0:
        scale = scale * weight_of(
            p_weights, g_weights, edge, tl.load(row + OPERATION), operations, dtype
        )
    mean = tl.zeros((c.shape[0],), dtype)
    shift = mean
    slope = mean
    if place >= 0:
        mean = tl.load(statistics + place + c, mask=own, other=0.0)
        variance = tl.load(statistics + place + channels + c, mask=own, other=0.0)
        rstd = inverse_deviation(variance, EPS)
        scale = scale * rstd
        if tl.load(row + FROZEN) == 0:
            partial = sums + tl.load(row + SUMS)
            shift = (chunk_sum(partial, c, own, channels, CHUNKS, AT_ONCE) / pixels).to(dtype)
            products = chunk_sum(partial + channels, c, own, channels, CHUNKS, AT_ONCE)
            exact = rstd.to(tl.float64)
            slope = (products * exact * exact / pixels).to(dtype)
    return scale, mean, shift, slope


@triton.jit
def before_norm(gradient, z, live, own, scale, mean, shift, slope, given):
    """Return dL/dz, 0 where there is none. Where statistics are given, z has no part in it."""
    back = shift[None, :] + (z - mean[None, :]) * slope[None, :]
    dz = scale[None, :] * (gradient - tl.where(given, 0, back))
    return tl.where(live[:, None] & own[None, :], dz, 0)


@triton.jit
def is_given(row):
    """Return whether z has no part in the gradient: given statistics, or no norm."""
    return (tl.load(row + FROZEN) != 0) | (tl.load(row + STATISTICS) < 0)
