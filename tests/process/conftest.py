"""Tiny sessions for tests with real processes: 32 px particles, a small network with random or trained weights."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cesped_stream.particles.stacks import write_stack
from cesped_stream_service.process import save_settings
from cesped_stream_service.settings import SessionSettings
from cesped_stream_service.toml import toml_text

BOX, PIXEL_SIZE = 32, 4.0
TINY_MODEL = {
    "backbone_stages": 2,
    "backbone_width": 8,
    "stem": "small",
    "lmax": 2,
    "projector_channels": 8,
    "sphere_order": 1,
    "s2_channels": 2,
    "so3_activation_resolution": 3,
    "grid_order": 1,
}
TINY_TRAINING: dict[str, Any] = {
    "model": TINY_MODEL,
    "preprocess": {"image_size": 16},
    "imagenet_weights": "none",
    "batch_size": 16,
    "max_steps": 12,
    "steps_per_epoch": 3,
    "warmup_steps": 2,
}
QUICK_SERVICE: dict[str, Any] = {
    "heartbeat_seconds": 0.2,
    "lease_seconds": 0.05,
    "commit_seconds": 0.05,
    "batch_rows": 64,
}
DEADLINE_SECONDS = 60.0


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Return the condition's value once it is true; fail with `what` at the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)
    return value


def land(folder: Path, name: str, count: int, *, aligned: bool, seed: int, micrographs: int = 4) -> None:
    """Write a star and its stack of `count` noise images into a landing folder, as acquisition software does."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_stack(folder / f"{name}.mrcs", rng.standard_normal((count, BOX, BOX)).astype(np.float32), PIXEL_SIZE)
    labels = ["rlnImageName", "rlnMicrographName", "rlnOpticsGroup", "rlnRandomSubset"]
    labels += ["rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"]
    labels += ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"] if aligned else []
    rows = []
    for k in range(count):
        cells = [f"{k + 1:06d}@{name}.mrcs", f"{name}_{k % micrographs}.mrc", "1", str(k % 2 + 1)]
        cells += [f"{12000 + 10 * k}.0", "11800.0", "30.0"]
        cells += [f"{rng.uniform(-179, 179):.4f}", f"{rng.uniform(1, 179):.4f}", "12.5"] if aligned else []
        rows.append(" ".join(cells))
    optics = (
        "\ndata_optics\n\nloop_\n_rlnOpticsGroup\n_rlnOpticsGroupName\n_rlnVoltage\n_rlnSphericalAberration\n"
        f"_rlnAmplitudeContrast\n_rlnImagePixelSize\n_rlnImageSize\n_rlnImageDimensionality\n1 og1 300.0 2.7 0.1 "
        f"{PIXEL_SIZE} {BOX} 2\n\n"
    )
    header = "\ndata_particles\n\nloop_\n" + "".join(f"_{label}\n" for label in labels)
    temporary = folder / f".{name}.writing"
    temporary.write_text(optics + header + "\n".join(rows) + "\n")
    temporary.rename(folder / f"{name}.star")
    (folder / f"{name}.star.done").touch()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published checkpoint with random weights."""
    import torch

    from cesped_stream.model.checkpoint import CheckpointManifest, HalfRecord, publish_checkpoint
    from cesped_stream.model.image2sphere import Image2Sphere
    from cesped_stream.settings import TrainingSettings

    training = TrainingSettings.model_validate(TINY_TRAINING)
    torch.manual_seed(0)
    states = {half: Image2Sphere(training.model_settings).state_dict() for half in (0, 1)}
    preprocess = training.preprocess_settings.model_copy(update={"crop_angstrom": BOX * PIXEL_SIZE})
    manifest = CheckpointManifest(
        preset="small",
        model=training.model_settings,
        preprocess=preprocess,
        network_pixel_size_angstrom=BOX * PIXEL_SIZE / 16,
        symmetry="C1",
        halves={half: HalfRecord(num_training=0, num_validation=0, steps=0) for half in (0, 1)},
        origin="random",
        independence="independent",
        stopped_by="steps",
        training=training,
    )
    folder, _ = publish_checkpoint(tmp_path_factory.mktemp("checkpoints"), manifest, states)
    return folder


@dataclass
class TinySession:
    """A session's settings and the processes of it that a test started."""

    settings: SessionSettings
    file: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.settings.session

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command on the session's settings file as a process of its own."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        log = (self.folder / f"{arguments[0]}.out").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "cesped_stream_service", *arguments, "--settings", str(self.file)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        log.close()
        self.processes.append(process)
        return process

    def status(self) -> dict[str, Any]:
        """Return the status that the coordinator wrote last, {} before the first."""
        file = self.folder / "state" / "status.json"
        return dict(json.loads(file.read_bytes())) if file.exists() else {}

    def wait_for(
        self, what: str, condition: Callable[[dict[str, Any]], Any], seconds: float = DEADLINE_SECONDS
    ) -> dict[str, Any]:
        """Wait until the status fulfils a condition; a process that has ended in between is told."""

        def reached() -> dict[str, Any] | None:
            status = self.status()
            return status if status and condition(status) else None

        try:
            status: dict[str, Any] = wait_until(reached, what, seconds)
        except AssertionError as error:
            outs = "\n".join(f"{file.name}:\n{file.read_text()[-1500:]}" for file in self.folder.glob("*.out"))
            raise AssertionError(f"{error}\nlast status: {self.status()}\n{outs}") from None
        return status

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        process.send_signal(number)
        return process.wait(DEADLINE_SECONDS)


MakeSession = Callable[..., TinySession]


@pytest.fixture
def make_session(tmp_path: Path) -> Iterator[MakeSession]:
    """Make tiny sessions; every process that one of them started is gone afterwards."""
    made: list[TinySession] = []

    def make(name: str, landing: Path, **changes: Any) -> TinySession:
        values: dict[str, Any] = {
            "session": tmp_path / name,
            "proposer": "network",
            "min_aligned_per_half": 20,
            "aligned_quiet_seconds": 0.2,
            "landing": {"folder": landing, "scan_seconds": 0.1, "settle_seconds": 0.2},
            "training": TINY_TRAINING,
            "inference": {"batch_size": 16, "device": "cpu", "threads": 1},
            "service": QUICK_SERVICE,
        }
        settings = SessionSettings(**(values | changes))
        settings.session.mkdir(parents=True)
        file = tmp_path / f"{name}.toml"
        file.write_text(toml_text(settings.model_dump(mode="json", exclude_none=True)))
        save_settings(settings)
        made.append(TinySession(settings, file))
        return made[-1]

    yield make
    for session in made:
        for process in session.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
