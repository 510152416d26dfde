"""The scratch memory of the compiled operations; the cell's tests see it grow."""

import pytest
import torch
from torch.library import Library

from da2s_fast.ops import release_workspaces, workspace, workspace_bytes


def test_release_leaves_nothing() -> None:
    release_workspaces()
    assert workspace_bytes() == 0


def test_registered_implementations_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators without tensors: the dispatcher finds implementations for every device only."""
    held = [123]
    library = Library("da2s_workspace_test", "FRAGMENT")
    for schema, run in (
        ("workspace_bytes() -> int", lambda: held[0]),
        ("release_workspaces() -> ()", held.clear),
    ):
        library.define(schema)
        library.impl(schema.split("(", maxsplit=1)[0], run, "CompositeExplicitAutograd")
    monkeypatch.setattr(workspace, "_BYTES", "da2s_workspace_test::workspace_bytes")
    monkeypatch.setattr(workspace, "_RELEASE", "da2s_workspace_test::release_workspaces")
    monkeypatch.setattr(torch.ops, "da2s_fast", torch.ops.da2s_workspace_test)
    assert workspace_bytes() == 123
    release_workspaces()
    assert held == []
