"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of shared test data: CESPED_STREAM_TEST_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("CESPED_STREAM_TEST_DATA", _CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set CESPED_STREAM_TEST_DATA to their folder")
    return folder
