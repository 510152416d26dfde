"""From settings to a super-network."""

from __future__ import annotations

from typing import Any

import torch

from da2s_fast.data import ImageData
from da2s_fast.nn import (
    ArchitectureParameters,
    EdgeMode,
    NasBench201SuperNetwork,
    SuperNetwork,
)
from da2s_fast.search.settings import ResolvedSettings

AUTHORS_NOISE = 1e-4
DARTS_NOISE = 1e-3


def build_super_network(
    settings: ResolvedSettings, data: ImageData
) -> SuperNetwork | NasBench201SuperNetwork:
    """The super-network of these settings, on the CPU, in training mode.

    Weights are drawn from torch's global generator, which is left as it was; the same seed gives
    the same network whatever ran before.
    """
    space = settings.search_space()
    edge_modes: dict[str, EdgeMode] = {"da2s": "da2s", "darts": "none", "pc-darts": "softmax"}
    da2s = settings.method == "da2s"
    nas_bench = space.macro == "nas-bench-201"
    architecture = ArchitectureParameters(
        space.kinds,
        space.edges_per_node,
        len(space.primitives),
        keep=settings.keep(),
        strengthen_operations=da2s,
        # NAS-Bench-201 keeps every edge: there is nothing for beta to decide.
        edge_mode="none" if nas_bench else edge_modes[settings.method],
        swap_edge_weights=settings.compat == "daas",
        noise=AUTHORS_NOISE if da2s else DARTS_NOISE,
        generator=torch.Generator().manual_seed(settings.seed),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        sizes = (settings.channels, data.num_classes, settings.cells, architecture)
        common: dict[str, Any] = {
            "primitives": space.primitives,
            "nodes": space.nodes,
            "in_channels": data.channels,
            "partial_channels": settings.partial_channels,
        }
        if nas_bench:
            return NasBench201SuperNetwork(*sizes, **common)
        return SuperNetwork(*sizes, image_size=data.image_size, **common)
