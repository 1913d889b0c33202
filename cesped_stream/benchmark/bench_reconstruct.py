"""How fast a map is made on this machine, beside relion_reconstruct in the same run on the same files.

Every time is of the same work: read a star and its stack, reconstruct, write the map.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from cesped_stream.benchmark.bench_infer import peak_memory_bytes
from cesped_stream.benchmark.entries import open_entry
from cesped_stream.imaging.entry import write_entry
from cesped_stream.imaging.maps import read_map, write_map
from cesped_stream.imaging.simulate import embedded_ribosome, molecule_to_map
from cesped_stream.reconstruction.correlation import pearson
from cesped_stream.reconstruction.engine import engine_from
from cesped_stream.reconstruction.fsc import fsc
from cesped_stream.reconstruction.program import run_program
from cesped_stream.settings import Device, EngineSettings, SimulationSettings

FIELD_OF_VIEW_ANGSTROM = 384.0
HALF = 0


class ReconstructionFigures(BaseModel):
    """What was reached: wall seconds, best of the repetitions. None: relion_reconstruct is not on PATH."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_particles: int
    box_pixels: int
    symmetry: str
    device: str
    threads: int
    repeats: int
    builtin_seconds: float
    """In this process, after one run of warm-up."""
    builtin_process_seconds: float
    """A process of its own, as relion_reconstruct is one: imports included, compiled loops from the cache."""
    builtin_cold_seconds: float
    """The same with an empty cache: the loops are compiled."""
    relion_skip_gridding_seconds: float | None
    relion_default_seconds: float | None
    smallest_fsc: float | None
    """Of builtin and `--skip_gridding`, up to 0.9 of Nyquist."""
    correlation: float | None
    """Pearson's, of the same two."""
    default_correlation: float | None
    """Of builtin and RELION's default run, which differs by its gridding."""
    peak_memory_bytes: int

    @property
    def ratio(self) -> float | None:
        """Builtin over `relion_reconstruct --skip_gridding`: below 1 builtin is faster."""
        return self.builtin_seconds / self.relion_skip_gridding_seconds if self.relion_skip_gridding_seconds else None


def bench_reconstruct(
    num_particles: int = 4000, box_pixels: int = 64, *, symmetry: str = "C1", device: Device = "auto", repeats: int = 3
) -> ReconstructionFigures:
    """Simulate an entry of `num_particles` in one half-set and return what its reconstruction takes.

    Builtin and RELION take turns, so that both meet the same load. RuntimeError or ExternalProgramError where a
    measured process fails.
    """
    with tempfile.TemporaryDirectory(prefix="cesped-stream-bench-") as name:
        folder = Path(name)
        pixel_size = FIELD_OF_VIEW_ANGSTROM / box_pixels
        volume = molecule_to_map(*embedded_ribosome(), box_pixels, pixel_size, 2 * pixel_size)
        write_entry(folder, volume, pixel_size, SimulationSettings(num_particles=2 * num_particles, snr=0.1))
        return _measured(folder, symmetry, device, repeats)


def reconstruct_half(folder: Path, symmetry: str, device: Device, output: Path) -> None:
    """Read half-set 0 of an entry, reconstruct it with the builtin engine and write the map: the measured work."""
    table = open_entry(folder / f"particles_{HALF}.star").particles()
    made = engine_from(EngineSettings(device=device)).reconstruct(table, symmetry)
    write_map(output, made.volume, made.pixel_size_angstrom)


def figures_table(figures: ReconstructionFigures) -> str:
    """Return the figures as text."""
    rows = [
        ("particles, box, symmetry", f"{figures.num_particles}, {figures.box_pixels} px, {figures.symmetry}"),
        ("device, threads", f"{figures.device}, {figures.threads}"),
        ("builtin, s", f"{figures.builtin_seconds:.2f}"),
        ("  as a process, s", f"{figures.builtin_process_seconds:.2f}"),
        ("  and compiling, s", f"{figures.builtin_cold_seconds:.2f}"),
        ("relion --skip_gridding, s", _optional(figures.relion_skip_gridding_seconds, ".2f")),
        ("relion, s", _optional(figures.relion_default_seconds, ".2f")),
        ("builtin / --skip_gridding", _optional(figures.ratio, ".2f")),
        ("smallest FSC to 0.9 Nyquist", _optional(figures.smallest_fsc, ".5f")),
        ("correlation", _optional(figures.correlation, ".5f")),
        ("  with relion's default", _optional(figures.default_correlation, ".5f")),
        ("peak memory, GB", f"{figures.peak_memory_bytes / 1e9:.2f}"),
    ]
    return "\n".join(f"{name:<30}{value:>18}" for name, value in rows)


def _measured(folder: Path, symmetry: str, device: Device, repeats: int) -> ReconstructionFigures:
    builtin, skipped, gridded = (folder / f"{name}.mrc" for name in ("builtin", "skipped", "gridded"))
    cold = _seconds(lambda: _in_new_process(folder, symmetry, device, folder / "cache"))
    process = _seconds(lambda: _in_new_process(folder, symmetry, device, folder / "cache"))
    reconstruct_half(folder, symmetry, device, builtin)
    program = shutil.which("relion_reconstruct")
    ours, without, default = [], [], []
    for _ in range(repeats):
        ours.append(_seconds(lambda: reconstruct_half(folder, symmetry, device, builtin)))
        if program is not None:
            without.append(_seconds(lambda: _relion(program, folder, symmetry, skipped, "--skip_gridding")))
            default.append(_seconds(lambda: _relion(program, folder, symmetry, gridded)))
    volume, _ = read_map(builtin)
    box = volume.shape[0]
    theirs = read_map(skipped)[0] if without else None
    return ReconstructionFigures(
        num_particles=len(open_entry(folder / f"particles_{HALF}.star").particles()),
        box_pixels=box,
        symmetry=symmetry,
        device=device,
        threads=torch.get_num_threads(),
        repeats=repeats,
        builtin_seconds=min(ours),
        builtin_process_seconds=process,
        builtin_cold_seconds=cold,
        relion_skip_gridding_seconds=min(without, default=None),
        relion_default_seconds=min(default, default=None),
        smallest_fsc=None if theirs is None else float(fsc(volume, theirs)[: int(0.9 * box / 2) + 1].min()),
        correlation=None if theirs is None else pearson(volume, theirs),
        default_correlation=pearson(volume, read_map(gridded)[0]) if default else None,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _relion(program: str, folder: Path, symmetry: str, output: Path, *options: str) -> None:
    words = [program, "--i", f"particles_{HALF}.star", "--o", output.name, "--ctf", "--pad", "2", "--sym", symmetry]
    run_program([*words, *options], folder)


def _in_new_process(folder: Path, symmetry: str, device: Device, cache: Path) -> None:
    """As a process of its own whose compiled loops are kept in `cache`, by env: our own environment is not touched."""
    words = [sys.executable, "-m", __name__, str(folder), symmetry, device, str(folder / "process.mrc")]
    done = subprocess.run(["env", f"NUMBA_CACHE_DIR={cache}", *words], check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} ended with exit status {done.returncode}")


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    reconstruct_half(Path(sys.argv[1]), sys.argv[2], EngineSettings(device=sys.argv[3]).device, Path(sys.argv[4]))
