"""The package as users get it: built into a wheel by a real pip, imported by real processes."""

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from da2s_fast import backends
from da2s_fast.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
INSTRUCTION_SETS = ["portable", "avx2", "avx512"] if X86_64 else ["portable"]
REPORT = """
import json
from da2s_fast import backends, kernels
report = {status.name: status._asdict() for status in backends.backend_report()}
print(json.dumps([report, backends.build_info(), [backends.__file__, kernels.__file__]]))
"""


def runs_here(isa: str) -> bool:
    """Tell from the kernel's list, not the library's question, what this processor supports."""
    needed = {
        "portable": set(),
        "avx2": {"avx2", "fma"},
        "avx512": {"avx2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq"},
    }
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return needed[isa] <= set(next(line for line in lines if line.startswith("flags")).split())


def build_wheel(folder: Path, **environment: str) -> Path:
    """Build a wheel of the source tree in `folder`, as `pip install` would; return its path."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            "..",
            ".",
        ],
        cwd=folder,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.parent.glob("*.whl")
    return wheel


def copy_sources(folder: Path) -> Path:
    """Copy what a build needs; of the CUDA sources, which take minutes, only a broken one."""
    tree = folder / "tree"
    compiled = shutil.ignore_patterns("*.so", "_build.json", "__pycache__", "cuda")
    for name in ("csrc", "kernels", "da2s_fast"):
        shutil.copytree(ROOT / name, tree / name, ignore=compiled)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/broken.cu").write_text("this is not CUDA\n")
    return tree


def report_of(site: Path, **environment: str) -> tuple[dict, dict, list[str], str]:
    """Import the package below `site` in a new process; return its report and its stderr."""
    environment = {"PYTHONPATH": str(site), "DA2S_ISA": "", **environment}
    done = subprocess.run(
        [sys.executable, "-c", REPORT],
        cwd=site,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return *json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return a source tree in which a build ran, the wheel it made, the folder with its content."""
    tree = copy_sources(tmp_path_factory.mktemp("packaging"))
    wheel = build_wheel(tree)
    site = tree.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return tree, wheel, site


@pytest.fixture(scope="module")
def default_report(built: tuple[Path, Path, Path]) -> tuple[dict, dict, list[str], str]:
    """Return the report of the wheel, with nothing forced."""
    return report_of(built[2])


def test_wheel_holds_every_module(built: tuple) -> None:
    _, wheel, _ = built
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in (("da2s_fast", "da2s_fast"), ("kernels", "da2s_fast/kernels"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc") and path.name != "_build.json"
    }
    assert wanted - names == set()


def test_wheel_holds_the_compiled_libraries(built: tuple) -> None:
    _, wheel, _ = built
    names = zipfile.ZipFile(wheel).namelist()
    libraries = sorted(Path(name).name.split(".")[0] for name in names if name.endswith(".so"))
    assert libraries == ["_build_info", "_cpu"]


def test_installed_package_reports_what_runs(built: tuple, default_report: tuple) -> None:
    report, info, files, _ = default_report
    assert all(Path(file).is_relative_to(built[2]) for file in files)
    assert report["reference"]["available"]
    assert report["cpu"]["available"]
    assert info["instruction_set"] in report["cpu"]["detail"]
    assert info["torch"] == torch.__version__


def test_a_failing_cuda_build_is_reported(default_report: tuple) -> None:
    report = default_report[0]
    assert not report["cuda"]["available"]
    possible = ("pip install -v", "nvcc was not found", "built without CUDA")
    assert any(reason in report["cuda"]["detail"] for reason in possible)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_instruction_set_can_be_forced(built: tuple, default_report: tuple, isa: str) -> None:
    usable = default_report[1]["usable_instruction_sets"]
    report, info, _, _ = report_of(built[2], DA2S_ISA=isa)
    if isa in usable:
        assert report["cpu"]["available"]
        assert info["instruction_set"] == isa
    else:
        assert f"DA2S_ISA is '{isa}', which cannot run here" in report["cpu"]["detail"]
        assert f"({', '.join(usable)})" in report["cpu"]["detail"]


def test_the_best_instruction_set_is_chosen(default_report: tuple) -> None:
    info = default_report[1]
    assert info["instruction_sets"] == INSTRUCTION_SETS
    assert info["usable_instruction_sets"] == [i for i in INSTRUCTION_SETS if runs_here(i)]
    assert info["instruction_set"] == info["usable_instruction_sets"][-1]


def test_an_unknown_instruction_set_is_refused(built: tuple) -> None:
    _, _, site = built
    report, info, _, stderr = report_of(site, DA2S_ISA="avx9")
    assert not report["cpu"]["available"]
    for text in (report["cpu"]["detail"], info["problem"], stderr):
        assert "DA2S_ISA is 'avx9'" in text


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_code_of_one_instruction_set_cannot_leak_into_another(built: tuple, isa: str) -> None:
    """The linker keeps one copy of a weak function; one for a better processor must not be it."""
    (folder,) = built[0].glob(f"build/temp*/{isa}")
    sources = {path.relative_to(ROOT) for path in (ROOT / "csrc/cpu").rglob("*.simd.cpp")}
    objects = {path.relative_to(folder): path for path in folder.rglob("*.o")}
    assert set(objects) == {path.with_suffix(".o") for path in sources}
    for path in objects.values():
        listing = subprocess.run(["nm", "-C", path], check=True, capture_output=True, text=True)
        symbols = [line[17:].split(" ", 1) for line in listing.stdout.splitlines()]
        # What the linker sees: capitals, and u for unique objects; U is undefined.
        defined = [name for kind, name in symbols if kind in "TWVBDRu"]
        assert [name for name in defined if f"da2s_fast::{isa}::" not in name] == []


def test_installs_without_a_compiler(tmp_path: Path) -> None:
    wheel = build_wheel(copy_sources(tmp_path), CXX="no-such-compiler")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert not list(site.rglob("*.so"))
    report, info, _, _ = report_of(site)
    assert report["reference"]["available"]
    assert not report["cpu"]["available"]
    for text in (report["cpu"]["detail"], info["problem"]):
        assert "no-such-compiler" in text
        assert "install g++" in text


def test_installs_without_the_cuda_toolkit(tmp_path: Path) -> None:
    wheel = build_wheel(copy_sources(tmp_path), CUDA_HOME="none", CXX="no-such-compiler")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    report, *_ = report_of(tmp_path / "site")
    assert not report["cuda"]["available"]
    possible = ("nvcc was not found in none", "built without CUDA")
    assert any(reason in report["cuda"]["detail"] for reason in possible)


def test_a_library_that_does_not_load_is_reported(tmp_path: Path) -> None:
    package = tmp_path / "da2s_fast"
    ignore = shutil.ignore_patterns("*.so", "_build.json")
    shutil.copytree(ROOT / "da2s_fast", package, ignore=ignore)
    shutil.copytree(ROOT / "kernels", package / "kernels")
    (package / "_cpu.abi3.so").write_text("not a library")
    report, _, _, stderr = report_of(tmp_path)
    assert not report["cpu"]["available"]
    assert "_cpu.abi3.so does not load" in report["cpu"]["detail"]
    assert "_cpu.abi3.so does not load" in stderr


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        ("sys.modules['torch'] = None", "--no-build-isolation"),
        ("import torch; torch.__version__ = '2.9.1'", "needs torch 2.10 or newer, found 2.9.1"),
    ],
)
def test_a_build_without_a_torch_that_fits_says_so(prepare: str, sentence: str) -> None:
    script = f"import sys; {prepare}; import runpy; sys.argv[1:] = ['egg_info']; "
    done = subprocess.run(
        [sys.executable, "-c", script + "runpy.run_path('setup.py', run_name='__main__')"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_an_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(UserError, match=r"needs torch 2\.10 or newer, found 2\.9\.1"):
        backends.load_libraries.__wrapped__()


@pytest.mark.skipif(shutil.which("c++") is None, reason="nothing is compiled without a compiler")
def test_this_environment_has_the_compiled_operators() -> None:
    report = {status.name: status for status in backends.backend_report()}
    assert report["cpu"].available, report["cpu"].detail
