"""A cache of compiled code that cannot be read or written costs a compilation, not the result."""

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from cesped_stream.reconstruction.scatter import compiled

@compiled
def doubled(value):
    return 2 * value

print(doubled(21))
"""


def run(folder: Path, before: str = "") -> str:
    if not (folder / "loops.py").exists():
        (folder / "loops.py").write_text(MODULE)
    command = [sys.executable, "-c", f"{before}\nimport sys; sys.path.insert(0, {str(folder)!r}); import loops"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_torn_cache_is_compiled_again(tmp_path: Path, suffix: str) -> None:
    assert run(tmp_path) == "42"
    files = list(tmp_path.rglob(f"*.{suffix}"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    assert run(tmp_path) == "42"


def test_full_disk_costs_the_cache_only(tmp_path: Path) -> None:
    full = "from numba.core import caching\ndef full(*_): raise OSError(28, 'no space left')\n"
    assert run(tmp_path, full + "caching.IndexDataCacheFile.save = full") == "42"
