"""Synthetic run folders: made-up numbers in the files and with the keys a search writes.

The curves are smooth functions of the epoch, so that what a report must show can be computed by
hand; nothing in here was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from da2s_fast.spaces import get_space

GENOTYPES = {
    "da2s": "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_3x3', 2), "
    "('sep_conv_3x3', 1), ('sep_conv_5x5', 3), ('skip_connect', 0), ('dil_conv_5x5', 4), "
    "('sep_conv_3x3', 2)], normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), "
    "('sep_conv_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('avg_pool_3x3', 1), "
    "('skip_connect', 2), ('dil_conv_5x5', 3), ('skip_connect', 2)], reduce_concat=range(2, 6))",
    "imbalanced": "Genotype(normal=[('sep_conv_3x3', 1, 2), ('skip_connect', 0, 3), "
    "('sep_conv_3x3', 2, 3), ('skip_connect', 0, 4), ('dil_conv_3x3', 1, 4), "
    "('sep_conv_5x5', 3, 4), ('skip_connect', 0, 5), ('max_pool_3x3', 2, 5), "
    "('sep_conv_3x3', 4, 5)], normal_concat=range(2, 6), reduce=[('max_pool_3x3', 1, 2), "
    "('sep_conv_3x3', 1, 3), ('skip_connect', 2, 3), ('avg_pool_3x3', 1, 4), "
    "('skip_connect', 2, 4), ('sep_conv_3x3', 3, 4), ('dil_conv_5x5', 3, 5), "
    "('skip_connect', 2, 5), ('sep_conv_3x3', 4, 5)], reduce_concat=range(2, 6))",
    "nas-bench-201": "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_1x1~1|"
    "avg_pool_3x3~2|",
}
"""A genotype by name: two edges per node, keep counts 1, 2, 3, 3, and NAS-Bench-201."""

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name, ...)`: a synthetic run folder in the test's temporary folder."""

    def make(name: str = "run", **options: Any) -> Path:
        return build_run(tmp_path / name, **options)

    return make


def build_run(
    folder: Path,
    *,
    method: str = "da2s",
    space: str = "da2s",
    genotype: str | None = None,
    epochs: int = 5,
    seed: int = 0,
    accuracy: float = 0.8,
    gap: float = 0.01,
    discrete: float = 0.97,
    finished: bool = True,
    weights: bool = False,
    config: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """Write a run folder whose search ends with the given accuracy, gap and mean max p.

    ``genotype`` is a name in GENOTYPES or a text, by default the one named like the space.
    ``weights`` records the operation and edge weights, whose many plots take time.
    ``config``, ``summary`` and ``metrics`` replace or add keys of config.yaml, of summary.json and
    of every line of metrics.jsonl.
    """
    folder.mkdir(parents=True)
    design = get_space(space)
    genotype = genotype or (space if space in GENOTYPES else "da2s")
    genotype = GENOTYPES.get(genotype, genotype)
    settings = {
        "data": "digits",
        "method": method,
        "space": space,
        "operations": list(design.primitives),
        "nodes": design.nodes,
        "cells": 5,
        "channels": 8,
        "partial_channels": 1,
        "keep": {kind: list(counts) for kind, counts in design.keep_targets().items()},
        "epochs": epochs,
        "seed": seed,
        "second_order": False,
        "arch_learning_rate": 0.0081,
        "compat": None,
    } | (config or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    lines = []
    for epoch in range(1, epochs + 1):
        progress = epoch / epochs
        share = 1 / len(design.primitives)
        p = {
            kind: _weights(design.num_edges, len(design.primitives), progress, discrete, kind)
            for kind in design.kinds
        }
        kept_beta = min(1.0, 0.5 + 0.6 * progress) if method == "da2s" else None
        if space == "nas-bench-201":
            kept_beta = None
        reached = accuracy * (1 - math.exp(-4 * progress))
        lost = gap / accuracy * reached + 0.3 * (1 - progress) * (
            reached - gap / accuracy * reached
        )
        lines.append(
            {
                "epoch": epoch,
                "lr": 0.001 + 0.012 * (1 + math.cos(math.pi * progress)),
                "train_loss": 2.3 * math.exp(-2 * progress) + 0.1,
                "train_accuracy": min(1.0, reached + 0.05),
                "arch_loss": 2.4 * math.exp(-1.7 * progress) + 0.2,
                "operation_entropy": 54.0 * (1 - progress) + 0.5,
                "edge_loss": 8.0 * (1 - progress),
                "accuracy_super": reached if epoch < epochs else accuracy,
                "accuracy_cut": reached - lost if epoch < epochs else accuracy - gap,
                "gap": lost if epoch < epochs else gap,
                "accuracy_super_bn": reached,
                "accuracy_cut_bn": reached - 0.5 * lost,
                "mean_max_p": share + (discrete - share) * progress,
                "kept_p": share + (discrete - share) * progress,
                "kept_beta": kept_beta,
                "skip_fraction": 0.25 * progress,
                "seconds": 2.5,
                "genotype": genotype,
                "p": p if weights else None,
                "edge_weights": _edge_weights(design, method, progress) if weights else None,
            }
            | (metrics or {})
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "genotype.txt").write_text(genotype + "\n")
    if finished:
        last = lines[-1] if lines else {}
        values = {
            "method": method,
            "space": space,
            "data": "digits",
            "seed": seed,
            "epochs": epochs,
            "seconds": 2.5 * epochs,
            "genotype": genotype,
            "parameters": 34_218,
            "derived": {
                "channels": 16,
                "cells": 8,
                "parameters": 276_000,
                "multiply_adds": 41_500_000,
            },
            "search": _measured(accuracy, gap),
            "test": _measured(accuracy - 0.02, gap + 0.005),
            "mean_max_p": last.get("mean_max_p"),
            "kept_p": last.get("kept_p"),
            "kept_beta": last.get("kept_beta"),
            "warnings": [],
        } | (summary or {})
        (folder / "summary.json").write_text(json.dumps(values))
    return folder


def build_training(
    folder: Path,
    accuracy: float,
    *,
    genotype: str = GENOTYPES["da2s"],
    epochs: int = 100,
    finished: bool = True,
    summary: dict[str, Any] | None = None,
) -> Path:
    """Write what `compare_runs` reads of a training from scratch that ends with the accuracy."""
    folder.mkdir(parents=True)
    settings = {"data": "digits", "drop_path": 0.2, "epochs": epochs}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    if finished:
        values = {
            "data": "digits",
            "genotype": genotype,
            "epochs": epochs,
            "test_accuracy": accuracy,
        } | (summary or {})
        (folder / "summary.json").write_text(json.dumps(values))
    return folder


def _measured(accuracy: float, gap: float) -> dict[str, float]:
    return {
        "super": accuracy,
        "cut": accuracy - gap,
        "super_bn": accuracy + 0.001,
        "cut_bn": accuracy + 0.001 - gap / 2,
    }


def _weights(
    edges: int, operations: int, progress: float, discrete: float, kind: str
) -> list[list[float]]:
    """Weights that move from uniform to `discrete` on one operation of each edge."""
    generator = np.random.default_rng(len(kind))
    winners = generator.integers(operations, size=edges)
    end = np.full((edges, operations), (1 - discrete) / (operations - 1))
    end[np.arange(edges), winners] = discrete
    bumps = generator.uniform(0.5, 1.5, size=(edges, operations))
    start = bumps / bumps.sum(axis=1, keepdims=True)
    share = progress**2
    return ((1 - share) * start + share * end).tolist()


def _edge_weights(space: Any, method: str, progress: float) -> dict[str, list[float]]:
    """All 1 but for DA2S in a cell with two inputs: the first two edges of a node win."""
    result = {}
    for kind in space.kinds:
        values: list[float] = []
        for edges in space.edges_per_node:
            if method != "da2s" or space.inputs == 1:
                values += [1.0] * edges
                continue
            logits = [progress * (1.0 if edge < 2 else -1.0) for edge in range(edges)]
            total = sum(math.exp(x) for x in logits)
            values += [edges * math.exp(x) / total for x in logits]
        result[kind] = values
    return result
