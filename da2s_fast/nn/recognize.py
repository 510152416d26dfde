"""Finding out whether modules compute exactly what the operator `cell` computes.

Everything is demanded that decides the numbers: exact types (subclasses, parametrized or quantized
layers may compute something else), geometry, norms without affine that share eps and momentum,
nobody hooked in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from da2s_fast.nn.hooks import has_hooks
from da2s_fast.nn.layers import is_separable
from da2s_fast.nn.operations import (
    DilConv,
    FactorizedReduce,
    Identity,
    NormalizedSequential,
    ReLUConvBN,
    SepConv,
    Zero,
)
from da2s_fast.ops.cell.operations import CONVS, DENSE, Conv
from da2s_fast.ops.cell.plan import CellPlan, PreprocessKind

_NAMES = {conv: name for name, conv in CONVS.items()}
_DENSE_NAMES = {kernel: name for name, kernel in DENSE.items()}


class Found(NamedTuple):
    """An operation that the operator knows."""

    name: str
    modules: list[nn.Module]
    """Itself and everything inside that decides what it computes."""
    convolutions: list[nn.Module]
    """In the order of the operator's weights."""
    norms: list[Any]
    """Its BatchNorms, in order."""


class Recognized(NamedTuple):
    """Modules that the operator can stand in for."""

    plan: CellPlan
    modules: list[nn.Module]
    convolutions: list[nn.Module]
    norms: list[Any]
    frozen: list[int]
    """Slots of the norms that are in evaluation mode."""
    eps: float
    momentum: float | None
    """None averages over all batches."""


def recognize(
    preprocess: Sequence[nn.Module],
    edges: Sequence[Any],
    *,
    edge_type: Any,
    reduction: bool,
    nodes: int,
    outputs: int,
) -> Recognized | str:
    """What the modules compute as a plan, or why the operator cannot stand in for them.

    Args:
        preprocess: of both inputs; none where there is one input that is taken as it is.
        edges: mixed operations, node by node.
        edge_type: `MixedOp`; others may run their candidates in another way.
        reduction: whether edges that leave the inputs have stride 2.
        nodes: intermediate nodes.
        outputs: how many of them, counted from the last, make the output.
    """
    inputs = max(1, len(preprocess))
    sources = [source for node in range(nodes) for source in range(inputs + node)]
    if len(edges) != len(sources) or not 1 <= outputs <= nodes:
        return f"it has {len(edges)} edges, {nodes} nodes and {outputs} outputs"
    channels, k = edges[0].channels, edges[0].partial_channels
    found: list[Found] = []
    kinds: list[PreprocessKind] = []
    for position, module in enumerate(preprocess):
        prepared, kind = _preprocessing(module, channels)
        if prepared is None or (kind == "reduce" and position == inputs - 1):
            return f"preprocess{position} is not as this package builds it, or has hooks"
        found.append(prepared)
        kinds.append(kind)
    names: list[tuple[str, ...]] = []
    pools: set[int] = set()
    for row, (edge, source) in enumerate(zip(edges, sources, strict=True)):
        stride = 2 if reduction and source < inputs else 1
        own = type(edge)
        if (
            own.candidates is not edge_type.candidates
            or own.bypass is not edge_type.bypass
            or has_hooks(edge)
            or (edge.stride, edge.channels, edge.partial_channels) != (stride, channels, k)
        ):
            return f"edge {row} is not as this package builds it, or has hooks"
        candidates = []
        for column, operation in enumerate(edge._ops):
            candidate = _candidate(operation, channels // k, stride)
            if candidate is None:
                kind_name = type(operation).__name__
                return f"candidate {column} of edge {row} ({kind_name}) is unknown or has hooks"
            if "pool" in candidate.name:
                pools.add(len(candidate.norms))
            candidates.append(candidate)
        names.append(tuple(candidate.name for candidate in candidates))
        found += [Found("", [edge, edge._ops], [], []), *candidates]
    if len(set(names)) > 1 or len(set(names[0])) < len(names[0]) or not names[0]:
        return f"edges have different operations or one of them twice: {sorted(set(names))}"
    if len(pools) > 1:
        return "some pools have a norm, some not"
    modules = [module for part in found for module in part.modules]
    norms = [norm for part in found for norm in part.norms]
    if len(set(map(id, modules))) < len(modules):
        return "a module is in several places"
    eps, momentum = (norms[0].eps, norms[0].momentum) if norms else (1e-5, 0.1)
    if any(norm.eps != eps or norm.momentum != momentum for norm in norms):
        return "norms differ in eps or momentum"
    plan = CellPlan(
        channels,
        names[0],
        nodes,
        reduction,
        tuple(kinds) or ("identity",),
        k,
        outputs,
        pools != {0},
    )
    convolutions = [module for part in found for module in part.convolutions]
    frozen = [slot for slot, norm in enumerate(norms) if not norm.training]
    return Recognized(plan, modules, convolutions, norms, frozen, eps, momentum)


def _preprocessing(module: nn.Module, channels: int) -> tuple[Found | None, PreprocessKind]:
    if type(module) is FactorizedReduce:
        return _factorized_reduce(module, module.conv_1.in_channels, channels), "reduce"
    if type(module) is ReLUConvBN:
        return _dense(module, None, channels, 1, (1,)), "conv"
    return None, "identity"


def _candidate(module: nn.Module, channels: int, stride: int) -> Found | None:
    if has_hooks(module):
        return None
    if type(module) is Zero:
        return Found("none", [module], [], []) if module.stride == stride else None
    if type(module) is Identity:
        return Found("skip_connect", [module], [], []) if stride == 1 else None
    if type(module) is FactorizedReduce:
        return _factorized_reduce(module, channels, channels) if stride == 2 else None
    if type(module) is SepConv or type(module) is DilConv:
        return _separable(module, channels, stride)
    if type(module) is ReLUConvBN:
        return _dense(module, channels, channels, stride, tuple(_DENSE_NAMES))
    return _pool(module, channels, stride)


def _pool(module: nn.Module, channels: int, stride: int) -> Found | None:
    layers: list[Any] = list(module) if type(module) is NormalizedSequential else [module]
    pool, norms = layers[0], layers[1:]
    if has_hooks(pool) or len(norms) > 1 or not all(_is_norm(n, channels) for n in norms):
        return None
    if type(pool) is nn.MaxPool2d:
        name = "max_pool_3x3"
        fits = _both(pool.dilation, 1) and not pool.return_indices
    elif type(pool) is nn.AvgPool2d:
        name = "avg_pool_3x3"
        fits = not pool.count_include_pad and pool.divisor_override is None
    else:
        return None
    if not (fits and _both(pool.kernel_size, 3) and _both(pool.stride, stride)):
        return None
    if not _both(pool.padding, 1) or pool.ceil_mode:
        return None
    modules = [pool] if pool is module else [module, pool]
    return Found(name, [*modules, *norms], [], norms)


def _separable(module: SepConv | DilConv, channels: int, stride: int) -> Found | None:
    chain = module.op
    layers: list[Any] = list(chain)
    if type(chain) is not NormalizedSequential or has_hooks(chain) or len(layers) not in (4, 8):
        return None
    halves = [layers[start : start + 4] for start in range(0, len(layers), 4)]
    kinds = set()
    for half, own_stride in zip(halves, (stride, 1), strict=False):
        _, depthwise, pointwise, norm = half
        if not is_separable(half[:3]) or not _is_norm(norm, channels):
            return None
        kinds.add((depthwise.kernel_size[0], depthwise.dilation[0]))
        if (depthwise.in_channels, pointwise.in_channels, pointwise.out_channels) != (
            channels,
        ) * 3 or depthwise.stride != (own_stride, own_stride):
            return None
    name = _NAMES.get(Conv(*kinds.pop(), twice=len(halves) == 2))
    if name is None or kinds:
        return None
    convolutions = [half[i] for half in halves for i in (1, 2)]
    norms = [half[3] for half in halves]
    return Found(name, [module, chain, *layers], convolutions, norms)


def _dense(
    module: ReLUConvBN, before: int | None, channels: int, stride: int, kernels: tuple[int, ...]
) -> Found | None:
    """ReLU, convolution, norm; from any number of channels where `before` is None."""
    chain = module.op
    layers = list(chain)
    if has_hooks(module) or has_hooks(chain) or type(chain) is not NormalizedSequential:
        return None
    if len(layers) != 3:
        return None
    relu, conv, norm = layers
    if not _is_relu(relu) or type(conv) is not nn.Conv2d or not _is_norm(norm, channels):
        return None
    kernel = conv.kernel_size[0]
    before = conv.in_channels if before is None else before
    if kernel not in kernels or not _is_conv(conv, before, channels, kernel, stride):
        return None
    return Found(_DENSE_NAMES[kernel], [module, chain, *layers], [conv], [norm])


def _factorized_reduce(module: FactorizedReduce, before: int, channels: int) -> Found | None:
    half = channels // 2
    fits = (
        not has_hooks(module)
        and _is_relu(module.relu)
        and _is_conv(module.conv_1, before, half, 1, 2)
        and _is_conv(module.conv_2, before, channels - half, 1, 2)
        and _is_norm(module.bn, channels)
    )
    if not fits:
        return None
    convolutions: list[nn.Module] = [module.conv_1, module.conv_2]
    modules = [module, module.relu, *convolutions, module.bn]
    return Found("skip_connect", modules, convolutions, [module.bn])


def _is_relu(module: nn.Module) -> bool:
    return type(module) is nn.ReLU and not module.inplace and not has_hooks(module)


def _is_conv(module: nn.Module, before: int, channels: int, kernel: int, stride: int) -> bool:
    return (
        type(module) is nn.Conv2d
        and not has_hooks(module)
        and (module.in_channels, module.out_channels, module.groups) == (before, channels, 1)
        and module.kernel_size == (kernel, kernel)
        and module.stride == (stride, stride)
        and module.padding == (kernel // 2, kernel // 2)
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and module.bias is None
    )


def _is_norm(module: nn.Module, channels: int) -> bool:
    return (
        type(module) is nn.BatchNorm2d
        and not has_hooks(module)
        and not module.affine
        and module.num_features == channels
        and module.track_running_stats
        and module.running_mean is not None
        and module.running_var is not None
        and module.num_batches_tracked is not None
    )


def _both(value: int | tuple[int, ...], wanted: int) -> bool:
    """Pools take a number or one per direction."""
    return value in (wanted, (wanted, wanted))
