"""A small trained network, shared by the tests of what comes after training."""

from __future__ import annotations

import pytest

from da2s_fast.data import ImageData, load_data
from da2s_fast.train import RetrainResult, RetrainSettings, retrain

# One to three edges per node, so that nothing relies on two of them.
GENOTYPE = (
    "Genotype(normal=[('sep_conv_3x3', 1, 2), ('skip_connect', 0, 3), ('max_pool_3x3', 1, 3), "
    "('dil_conv_3x3', 2, 3)], normal_concat=range(2, 4), reduce=[('skip_connect', 0, 2), "
    "('sep_conv_3x3', 1, 2), ('avg_pool_3x3', 2, 3)], reduce_concat=range(2, 4))"
)
NAS_BENCH_201 = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|none~2|"


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture(scope="session")
def trained(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> RetrainResult:
    """A network trained on digits in a run folder."""
    settings = RetrainSettings(channels=8, cells=3, epochs=6, batch_size=32, learning_rate=0.1)
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    return retrain(GENOTYPE, settings, data=digits, run_dir=run_dir, progress=False)
