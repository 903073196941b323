"""What all tests share: where the large real models are, if at all, and that Ctrl-C reaches what they start."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pytest_configure() -> None:
    """Undo what programs that tests start would inherit: jobs that a shell began in the background ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and pictures beside the checkout; tests that need it are skipped without it."""
    if not (SHARED / "models").is_dir():
        pytest.skip("needs the folder shared/ with real models beside the checkout")
    return SHARED
