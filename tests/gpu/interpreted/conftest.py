import pytest
import triton


@pytest.fixture(autouse=True)
def interpreting() -> None:
    assert triton.knobs.runtime.interpret
