"""Checkpoints are whole, or the old ones, or refused."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from da2s_fast.errors import UserError
from da2s_fast.search import checkpoint
from da2s_fast.search.checkpoint import load_checkpoint, save_checkpoint, write_text

STATE = {
    "tensor": torch.arange(1000.0),
    "nested": {"list": [1, 2.5, "text", None, True], 3: torch.tensor(4)},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def assert_same(loaded: dict) -> None:
    assert torch.equal(loaded["tensor"], STATE["tensor"])
    assert loaded["nested"]["list"] == STATE["nested"]["list"]
    assert torch.equal(loaded["nested"][3], STATE["nested"][3])


def test_round_trip(path: Path) -> None:
    save_checkpoint(path, STATE)
    assert_same(load_checkpoint(path))
    save_checkpoint(path, {"other": 1})
    assert load_checkpoint(path) == {"other": 1}
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


# Forks a child that saves without end for every line of input; its own start takes seconds.
SAVE_FOREVER = """
import os, sys, torch
from pathlib import Path
from da2s_fast.search.checkpoint import save_checkpoint
path = Path(sys.argv[1])
torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)
        continue
    number = 0
    while True:
        number += 1
        save_checkpoint(path, {"number": number, "tensor": torch.full((300_000,), float(number))})
        print(number, flush=True)
"""


def test_killed_while_saving_leaves_a_whole_file(path: Path) -> None:
    """Kill -9 at several moments of a save: what is there is one save, whole."""
    with subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for extra in range(20):
            process.stdin.write("go\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            saved = 0
            while saved < 2:
                saved = int(process.stdout.readline())
            time.sleep(0.0007 * extra)
            os.kill(child, signal.SIGKILL)
            while (line := process.stdout.readline()) != "dead\n":
                saved = int(line)
            loaded = load_checkpoint(path)
            # A save that was announced is there; the next may be there or not.
            assert loaded["number"] in (saved, saved + 1)
            assert torch.equal(loaded["tensor"], torch.full((300_000,), float(loaded["number"])))
        process.stdin.close()


def test_any_flipped_byte_is_noticed(path: Path) -> None:
    save_checkpoint(path, {"tensor": torch.arange(50.0)})
    content = path.read_bytes()
    expected = torch.arange(50.0)
    noticed = 0
    for position in range(0, len(content), 37):
        flipped = bytearray(content)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        try:
            # Bytes that nobody reads, in the zip's padding, may differ.
            assert torch.equal(load_checkpoint(path)["tensor"], expected)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is fine
            noticed += 1
    assert noticed > 20


def test_flipped_number_is_noticed_by_the_checksum(path: Path) -> None:
    save_checkpoint(path, {"tensor": torch.full((64,), 1.5)})
    content = bytearray(path.read_bytes())
    number = torch.full((64,), 1.5).numpy().tobytes()
    content[content.index(number) + 6] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint.pt (is damaged|cannot be read)"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_truncated_file(path: Path, share: float) -> None:
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"checkpoint.pt cannot be read"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{}, {"payload": 1}, [1, 2], {"sha256": "0", "payload": "x"}])
def test_another_file_of_torch(path: Path, content: object) -> None:
    torch.save(content, path)
    with pytest.raises(UserError, match=r"checkpoint.pt cannot be read"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("evil"),))


def test_code_in_a_file_is_not_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    torch.save({"sha256": Evil(), "payload": Evil()}, path)
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path)
    assert not Path("evil").exists()


def test_missing_file(path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint .*checkpoint.pt; start the run"):
        load_checkpoint(path)


def test_folder_in_its_place(path: Path) -> None:
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="cannot write"):
        save_checkpoint(path, STATE)
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*there is no folder .*nowhere; make it"):
        save_checkpoint(tmp_path / "nowhere" / "checkpoint.pt", STATE)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits on Windows")
def test_write_that_the_system_refuses_keeps_the_old_file(path: Path) -> None:
    """The system does not let a file grow beyond 100 kB."""
    import resource  # noqa: PLC0415 - POSIX only

    save_checkpoint(path, {"number": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError) as caught:
            save_checkpoint(path, {"number": 2, "tensor": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"cannot write {path}: File too large; the file on disk is")
    assert load_checkpoint(path) == {"number": 1}
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is always full takes the temporary file's place."""
    save_checkpoint(path, {"number": 1})
    monkeypatch.setattr(
        checkpoint,
        "open",
        lambda file, mode: open("/dev/full", "wb"),  # noqa: SIM115
        raising=False,
    )
    with pytest.raises(UserError, match="No space left on device") as caught:
        save_checkpoint(path, STATE)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert load_checkpoint(path) == {"number": 1}
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_text(tmp_path: Path) -> None:
    write_text(tmp_path / "genotype.txt", "ä\n")
    assert (tmp_path / "genotype.txt").read_bytes() == b"\xc3\xa4\n"
    write_text(tmp_path / "genotype.txt", "")
    assert (tmp_path / "genotype.txt").read_bytes() == b""


def test_file_can_be_read_by_others(path: Path) -> None:
    """As any other file a program writes: the umask decides."""
    (path.parent / "plain").touch()
    save_checkpoint(path, STATE)
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode
