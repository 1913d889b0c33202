"""The public cesped package, run by a Python of its own: arrays and JSON in and out, nothing imported from it here."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Peer = Callable[..., tuple[dict[str, Any], Mapping[str, np.ndarray]]]

PREAMBLE = """\
import json, sys
import numpy as np
arguments = json.loads(sys.argv[1])
result, arrays = {}, {}
"""
ENDING = """
with open(arguments["_result"], "w") as stream:
    json.dump(result, stream)
np.savez(arguments["_arrays"], **arrays)
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that `make test` never runs one."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.peers)


@pytest.fixture(scope="session")
def peers_python() -> Path:
    """The interpreter that has cesped: PEERS_PYTHON, as `make test-peers` sets it."""
    path = Path(os.environ.get("PEERS_PYTHON", ""))
    if not path.is_file():
        pytest.skip("PEERS_PYTHON names no interpreter with the public cesped package; use make test-peers")
    return path


@pytest.fixture
def peer(peers_python: Path, tmp_path: Path) -> Peer:
    """Run a script there: it has `arguments` (a dict) and fills `result` (JSON) and `arrays` (name to array).

    The home folder is an empty one, there is no network to wait for, and a failure shows the peer's own words.
    """
    home = tmp_path / "peer_home"
    home.mkdir()

    def run(script: str, **arguments: Any) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
        number = len(list(home.glob("*.json")))
        files = {"_result": str(home / f"{number}.json"), "_arrays": str(home / f"{number}.npz")}
        words = json.dumps({key: str(v) if isinstance(v, Path) else v for key, v in arguments.items()} | files)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run(
            [str(peers_python), "-c", PREAMBLE + script + ENDING, words],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            cwd=home,
            env=environment | {"HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(files["_arrays"], allow_pickle=False) as arrays:
            return json.loads(Path(files["_result"]).read_text()), dict(arrays)

    return run
