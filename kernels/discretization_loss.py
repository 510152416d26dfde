"""Triton kernel of discretization_loss; da2s_fast/ops/discretization_loss.py has the formulas.

All parameters together are a few hundred numbers, so one program of one warp computes the value and
all gradients. Softmax runs along the rows of tiles: a row is an edge with its operations, or a node
with its edges. An alpha is taken EDGES rows at a time, the nodes of a kind all at once; the loop
over kinds is unrolled, and what is known of a search space are constants. It computes in float64,
as the CPU's kernel does: single precision would save nothing here.
"""

import triton
import triton.language as tl


@triton.jit
def _entropies(x, valid):
    """Return the entropy of softmax of every row of x, and its gradient with respect to x."""
    largest = tl.max(tl.where(valid, x, float("-inf")), axis=1, keep_dims=True)
    shifted = tl.where(valid, x - largest, 0)
    exponentials = tl.where(valid, tl.exp(shifted), 0)
    # At least 1, the exponential of the largest; rows that are not there have no logarithm of 0.
    total = tl.sum(exponentials, axis=1, keep_dims=True)
    total = tl.maximum(total, 1, tl.PropagateNan.ALL)
    log_p = shifted - tl.log(total)
    p = exponentials / total
    entropy = -tl.sum(tl.where(valid, p * log_p, 0), axis=1, keep_dims=True)
    return entropy, -p * (log_p + entropy)


@triton.jit
def discretization_loss(
    alphas,
    betas,
    alpha_strides,
    beta_strides,
    grad_alphas,
    grad_betas,
    operation_entropy,
    edge_loss,
    OPERATIONS: tl.constexpr,
    EDGES_PER_NODE: tl.constexpr,
    KEEP: tl.constexpr,
    COUNT_WEIGHT: tl.constexpr,
    ALL_EDGES: tl.constexpr,
    EDGES: tl.constexpr,
    WIDTHS: tl.constexpr,
    NODES: tl.constexpr,
    NODE_WIDTH: tl.constexpr,
):
    """Compute both parts of the loss and their gradients, in a grid of one program.

    Args:
        alphas: per kind (ALL_EDGES, OPERATIONS[kind]), with alpha_strides, two per kind.
        betas: per kind (ALL_EDGES,), with beta_strides; or none.
        alpha_strides: as said.
        beta_strides: as said.
        grad_alphas: like alphas, contiguous.
        grad_betas: like betas, contiguous.
        operation_entropy: one number.
        edge_loss: one number.
        OPERATIONS: per kind.
        EDGES_PER_NODE: adding up to ALL_EDGES.
        KEEP: per kind and node, flat.
        COUNT_WEIGHT: of the distance of the strengths of a node's edges from KEEP.
        ALL_EDGES: of a kind.
        EDGES: rows of a tile of an alpha.
        WIDTHS: per kind, columns of a tile of an alpha: its operations and what is missing to a
            power of two.
        NODES: rows of a tile of betas, likewise.
        NODE_WIDTH: columns of a tile of betas: enough for the node of the most edges.
    """
    total = tl.zeros((EDGES, 1), tl.float64)
    for kind in tl.static_range(len(alphas)):
        operation = tl.arange(0, WIDTHS[kind])[None, :]
        for start in range(0, ALL_EDGES, EDGES):
            edge = start + tl.arange(0, EDGES)[:, None]
            valid = (edge < ALL_EDGES) & (operation < OPERATIONS[kind])
            at = edge * alpha_strides[2 * kind] + operation * alpha_strides[2 * kind + 1]
            x = 2 * tl.load(alphas[kind] + at, mask=valid, other=0).to(tl.float64)
            entropy, slope = _entropies(tl.where(x < -1, x * x * x, x), valid)
            total += entropy
            gradient = slope * tl.where(x < -1, 6 * x * x, 2)
            tl.store(grad_alphas[kind] + edge * OPERATIONS[kind] + operation, gradient, mask=valid)
    tl.store(operation_entropy, tl.sum(total))

    loss = tl.zeros((NODES, 1), tl.float64)
    node = tl.arange(0, NODES)[:, None]
    for kind in tl.static_range(len(betas)):
        # Where each node's betas are, how many they are, and how many are to be kept.
        first = tl.zeros((NODES, 1), tl.int32)
        edges = tl.zeros((NODES, 1), tl.int32)
        keep = tl.zeros((NODES, 1), tl.int32)
        for i in tl.static_range(len(EDGES_PER_NODE)):
            first += tl.where(node > i, EDGES_PER_NODE[i], 0)
            edges += tl.where(node == i, EDGES_PER_NODE[i], 0)
            keep += tl.where(node == i, KEEP[kind * len(EDGES_PER_NODE) + i], 0)
        takes_part = (node > 0) | (keep < edges)
        edge = tl.arange(0, NODE_WIDTH)[None, :]
        valid = edge < edges
        at = (first + edge) * beta_strides[kind]
        beta = tl.load(betas[kind] + at, mask=valid & takes_part, other=0).to(tl.float64)
        strength = tl.where(beta >= 1, 1, beta)
        entropy, slope = _entropies(strength, valid)
        excess = tl.sum(tl.where(beta > 0, strength, 0), axis=1, keep_dims=True) - keep
        loss += tl.where(takes_part, COUNT_WEIGHT * excess * excess + entropy, 0)
        slope += tl.where(beta > 0, 2 * COUNT_WEIGHT * excess, 0)
        slope = tl.where((beta >= 1) | ~takes_part, 0, slope)
        tl.store(grad_betas[kind] + first + edge, slope, mask=valid)
    tl.store(edge_loss, tl.sum(loss))
