"""The package's own names are there without their weight."""

import subprocess
import sys

import pytest

import cesped_stream


def test_importing_the_package_imports_no_torch() -> None:
    code = "import cesped_stream, sys; assert 'ParticlesDataset' in dir(cesped_stream); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_are_what_they_are_elsewhere() -> None:
    from cesped_stream.benchmark.dataset import ParticlesDataset

    assert cesped_stream.ParticlesDataset is ParticlesDataset
    assert set(cesped_stream.__all__) <= set(dir(cesped_stream))
    with pytest.raises(AttributeError, match="no attribute 'NoSuchThing'"):
        _ = cesped_stream.NoSuchThing
