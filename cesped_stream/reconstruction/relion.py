"""Maps by RELION's own program, run as a process: on PATH, in a folder, under MPI, or in a container. No torch."""

import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from cesped_stream.errors import InvalidSettingsError, InvalidStarError
from cesped_stream.imaging.maps import read_map
from cesped_stream.particles.stacks import STACK_LABEL, StackReader, check_names_of_one_stack, parse_image_name
from cesped_stream.particles.star import write_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.reconstruction.particles import Float64, Reconstruction, check_particles
from cesped_stream.reconstruction.program import run_program
from cesped_stream.settings import EngineSettings

FIGURE_OF_MERIT = "rlnParticleFigureOfMerit"
KEPT_COLUMNS = (
    *("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"),
    *("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor"),
)
LEFT_OUT_OF_OPTICS = ("rlnOpticsGroupName", "rlnMtfFileName")
CONTAINER_PROGRAMS = ("apptainer", "singularity")


class RelionEngine:
    """`relion_reconstruct --ctf --pad 2`, with RELION's gridding unless `skip_gridding`, and `--fom_weighting`.

    RELION reads a star of the columns that a map needs, its own `rlnParticleFigureOfMerit` only where weights are
    given; stacks are links beside it, so that no name of a folder can confuse it. Unlike the builtin engine it applies
    beam tilt, higher aberrations and anisotropic magnification where data_optics has them. The detector's MTF file is
    left out. Temporary files are removed, and the program ended, whatever happens.
    """

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self._settings = settings or EngineSettings(kind="relion")

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return "relion --skip_gridding" if self._settings.skip_gridding else "relion"

    @property
    def identity(self) -> str:
        """See `Engine.identity`; InvalidSettingsError where the program is not there."""
        image = self._settings.singularity_image
        file = (
            Path(_program("relion_reconstruct", self._settings.relion_folder)) if image is None else image.expanduser()
        )
        try:
            found = file.stat()
        except OSError as error:
            raise InvalidSettingsError(f"{file}: {error.strerror}; name the program or the image") from None
        return f"{self.name} ({file}, {found.st_size} bytes, {found.st_mtime_ns})"

    def reconstruct(
        self,
        table: ParticleTable,
        symmetry: str,
        *,
        weights: Float64 | None = None,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> Reconstruction:
        """See `Engine.reconstruct`. Also raises InvalidSettingsError where the program is not found, and
        ExternalProgramError with its last words where it fails."""
        pixel_size = check_particles(table, weights)
        options = ["--sym", symmetry, *(["--ctf_phase_flipped"] if _phase_flipped(table) else [])]
        if weights is not None:
            options.append("--fom_weighting")
        with tempfile.TemporaryDirectory(prefix="cesped-stream-relion-") as name:
            folder = Path(name)
            stacks = _write_particles(folder, table, weights)
            command = reconstruct_command(self._settings, options, folder, stacks)
            run_program(command, folder, lambda done: on_progress(int(done * len(table))))
            volume, _ = read_map(folder / "map.mrc")
        on_progress(len(table))
        return Reconstruction(volume, pixel_size, len(table), self.name)


def reconstruct_command(
    settings: EngineSettings, options: Sequence[str], folder: Path, stacks: Sequence[Path] = ()
) -> list[str]:
    """Return the words that make map.mrc of particles.star, both in `folder`, with more `options` of RELION's.

    A container sees `folder` and the folders of `stacks`, which are real paths, and nothing else but what it always
    sees. InvalidSettingsError where a program or the image is not there, or a container cannot be given a folder.
    """
    gridding = ["--skip_gridding"] if settings.skip_gridding else []
    arguments = ["--i", "particles.star", "--o", "map.mrc", "--ctf", "--pad", "2", *options, *gridding]
    if settings.singularity_image is not None:
        return [*_container(settings, settings.singularity_image, folder, stacks), *arguments]
    if settings.processes == 1:
        return [_program("relion_reconstruct", settings.relion_folder), *arguments]
    words = shlex.split(settings.mpirun)
    launcher = [_found(words[0], "install Open MPI, or set processes to 1"), *words[1:]]
    program = _program("relion_reconstruct_mpi", settings.relion_folder)
    return [*launcher, "-np", str(settings.processes), program, *arguments]


def definition_file() -> str:
    """Return the text of the Singularity/Apptainer definition of an image that `singularity_image` can name."""
    return (resources.files("cesped_stream") / "data" / "relion.def").read_text()


def _program(name: str, folder: Path | None) -> str:
    found = shutil.which(name, path=None if folder is None else str(folder.expanduser().absolute()))
    if found is None:
        raise InvalidSettingsError(
            f"{name} is not {'on PATH' if folder is None else f'in {folder}'}; install RELION (Debian: apt-get install "
            "relion), name its folder, or use the builtin engine"
        )
    return found


def _container(settings: EngineSettings, image: Path, folder: Path, stacks: Sequence[Path]) -> list[str]:
    image = image.expanduser().absolute()
    if not image.is_file():
        raise InvalidSettingsError(f"singularity_image: {image} is no file; build it from the definition file")
    program = next((found for name in CONTAINER_PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        raise InvalidSettingsError(
            f"singularity_image: none of {', '.join(CONTAINER_PROGRAMS)} is on PATH; install one"
        )
    folders = dict.fromkeys([folder, *(stack.parent for stack in stacks)])
    seen = [word for one in folders for word in ("--bind", _bindable(str(one)))]
    return [program, "run", *seen, "--pwd", str(folder), str(image), str(settings.processes)]


def _found(name: str, remedy: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise InvalidSettingsError(f"{name} is not on PATH; {remedy}")
    return found


def _bindable(folder: str) -> str:
    if ":" in folder or "," in folder:
        raise InvalidSettingsError(
            f"{folder}: a container cannot be given a folder with ':' or ',' in its name; rename it"
        )
    return folder


def _write_particles(folder: Path, table: ParticleTable, weights: Float64 | None) -> list[Path]:
    """Write particles.star and the links to its stacks; return the stacks' real paths."""
    names = [parse_image_name(text) for text in table.column("rlnImageName")]
    if STACK_LABEL in table:
        paths = [Path(unquote(text)) for text in table.column(STACK_LABEL)]
    else:
        paths = [Path(table.source).absolute().parent / name for _, name in names]
    links = {path: f"stack_{number:06d}.mrcs" for number, path in enumerate(dict.fromkeys(paths), 1)}
    with StackReader() as reader:
        boxes = {path: reader.header(path).box_size for path in links}
        for path, text in zip(paths, table.column("rlnImageName"), strict=True):
            check_names_of_one_stack(path, reader.header(path).num_images, [text])
        _check_counts(table, reader, paths, [index for index, _ in names])
    if len(set(boxes.values())) > 1:
        raise InvalidStarError(
            f"{table.source or 'particles'}: boxes of {' and '.join(map(str, sorted(set(boxes.values()))))} pixels; "
            "a map is made of particles of one box"
        )
    for path, link in links.items():
        (folder / link).symlink_to(path.resolve())
    images = [f"{i + 1:06d}@{links[path]}" for (i, _), path in zip(names, paths, strict=True)]
    columns: dict[str, Sequence[str]] = {"rlnImageName": images}
    if weights is not None:
        columns[FIGURE_OF_MERIT] = [f"{weight:.9g}" for weight in weights]
    kept = _only_needed(table).with_columns(columns)
    write_star(folder / "particles.star", kept.with_image_sizes([boxes[path] for path in paths]))
    return [path.resolve() for path in links]


def _check_counts(table: ParticleTable, reader: StackReader, paths: Sequence[Path], indices: Sequence[int]) -> None:
    """Let the stack reader refuse an image that a stack does not hold: RELION would read beyond its end."""
    last: dict[Path, int] = {}
    for path, index in zip(paths, indices, strict=True):
        last[path] = max(last.get(path, 0), index)
    for path, index in last.items():
        reader.read(path, [index])


def _only_needed(table: ParticleTable) -> ParticleTable:
    unneeded = [label for label in table.labels if label not in ("rlnImageName", *KEPT_COLUMNS)]
    optics = tuple(
        OpticsGroup(
            tuple(pair for pair in group.values if pair[0].startswith("rln") and pair[0] not in LEFT_OUT_OF_OPTICS)
        )
        for group in table.optics
    )
    return replace(table.without(unneeded), optics=optics)


def _phase_flipped(table: ParticleTable) -> bool:
    """Whether RELION must be told that the images are phase-flipped: it takes one answer for all of them."""
    ctf = table.ctf_parameters()
    flipped = ctf.phase_flipped[~ctf.premultiplied]
    if len(np.unique(flipped)) > 1:
        raise InvalidStarError(
            f"{table.source or 'particles'}: some optics groups are phase-flipped, others not; relion_reconstruct "
            "takes one answer for all, use the builtin engine"
        )
    return bool(flipped.any())
