"""What `import da2s_fast` offers, in new processes, because the order of imports matters."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from da2s_fast.ops._backend import constant_in_graphs

NAMES = (
    "search, resume, MixedOp, Cell, SuperNetwork, SearchSettings, SearchResult, SearchSpace, "
    "Genotype, register_operation, UserError, DivergedError, __version__"
)
PACKAGE_FIRST = f"""
from da2s_fast import {NAMES}
from da2s_fast.search.settings import SearchSettings as Settings
import da2s_fast.search.loop
"""
SUBPACKAGE_FIRST = f"""
import da2s_fast.search.loop
from da2s_fast.search.settings import SearchSettings as Settings
from da2s_fast import {NAMES}
"""
CHECK = """
import inspect, da2s_fast
assert inspect.isfunction(search) and da2s_fast.search is search, search
assert search.__module__ == "da2s_fast.api"
assert Settings is SearchSettings and inspect.isclass(Cell)
assert da2s_fast.search is search
print(__version__)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("order", [PACKAGE_FIRST, SUBPACKAGE_FIRST])
def test_search_is_the_function_in_any_order_of_imports(order: str) -> None:
    assert run(order + CHECK) == version("da2s_fast")


def test_mixed_op_comes_without_what_only_searches_need() -> None:
    heavy = {"matplotlib", "sklearn", "scipy", "torchvision", "PIL", "rich", "onnx", "tensorboard"}
    heavy |= {"torch._dynamo"}
    code = "import sys; from da2s_fast import MixedOp; print(*sys.modules)"
    loaded = set(run(code).split())
    assert "torch" in loaded
    assert not heavy & loaded


def test_searches_import_data_sets_and_plots_when_they_use_them() -> None:
    heavy = {"torch._dynamo", "matplotlib", "sklearn", "torchvision", "tensorboard", "onnx"}
    code = "import sys; from da2s_fast import api; print(*sys.modules)"
    loaded = set(run(code).split())
    assert "da2s_fast.search.loop" in loaded
    assert not heavy & loaded


def test_constants_of_graphs_are_marked_as_torch_marks_them() -> None:
    def ours() -> None: ...
    def torchs() -> None: ...

    assert constant_in_graphs(ours) is ours
    assert vars(ours) == vars(torch.compiler.assume_constant_result(torchs))


def test_the_command_line_says_its_version_without_torch() -> None:
    code = (
        "import sys; from da2s_fast.cli import main; main(['--version']); "
        "print('torch' in sys.modules)"
    )
    assert run(code).split() == ["da2s_fast", version("da2s_fast"), "False"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    code = "import da2s_fast\ntry:\n da2s_fast.nothing\nexcept AttributeError as e:\n print(e)"
    assert run(code) == "module 'da2s_fast' has no attribute 'nothing'"
