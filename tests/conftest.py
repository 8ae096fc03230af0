"""What several test files need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data: FACE_TEST_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("FACE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real test data: {folder} is not there (name its folder: FACE_TEST_DATA)")
    return folder
