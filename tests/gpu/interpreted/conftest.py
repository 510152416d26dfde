import pytest
import triton
import triton.language as tl
from triton.runtime import interpreter


@pytest.fixture(autouse=True)
def interpreting() -> None:
    assert triton.knobs.runtime.interpret


@pytest.fixture(autouse=True)
def patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch triton.language once for a kernel, not at every call inside: most of the time."""
    original, patched = interpreter._patch_lang, set()

    class Nothing:
        def restore(self) -> None:
            """There is nothing to restore."""

    def patch(function):
        values = function.__globals__.values()
        wanted = {id(value) for value in values if value is tl or value is tl.core}
        if wanted <= patched:
            return Nothing()
        outermost = not patched
        scope = original(function)
        patched.update(wanted)
        restore = scope.restore
        if outermost:
            scope.restore = lambda: (patched.clear(), restore())
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", patch)
