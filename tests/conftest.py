"""Fixtures for all tests."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from support.relion_session import RelionJobs

# How long an example takes says how busy the machine is, not whether the claim holds.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of shared test data: CESPED_STREAM_TEST_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("CESPED_STREAM_TEST_DATA", _CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}; set CESPED_STREAM_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: for kills of processes, which do not depend on what fsync costs."""
    base = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=base if os.access(base, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def relion_jobs(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> "RelionJobs":
    """RELION's own jobs on one simulated project, each run once for all tests that ask for it."""
    missing = [name for name in ("relion_refine_mpi", "relion_preprocess", "mpirun") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not on PATH")
    from support.relion_session import RelionJobs, start_project

    folder = tmp_path_factory.mktemp("relion") / "project"
    return RelionJobs(start_project(folder, test_data / "betagal" / "map.mrc"))
