"""RELION as an external program: what it is told, what it says, and that nothing of it stays. Its place is taken by
programs that write down what they were given; the golden tests run the real one."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import mrcfile
import numpy as np
import pytest

from cesped_stream.errors import ExternalProgramError, InvalidSettingsError, InvalidStarError, NotSettledError
from cesped_stream.particles.stacks import write_stack
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.reconstruction.engine import BuiltinEngine, engine_from
from cesped_stream.reconstruction.program import run_program
from cesped_stream.reconstruction.relion import RelionEngine, definition_file, reconstruct_command
from cesped_stream.settings import EngineSettings

COUNT, BOX = 6, 8
LABELS = (
    *("rlnImageName", "rlnMicrographName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"),
    *("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnParticleFigureOfMerit", "cestreamStack"),
)


def program(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    folder = tmp_path / "data of today"
    folder.mkdir()
    write_stack(folder / "particles.mrcs", np.ones((COUNT, BOX, BOX), np.float32), 3.0)
    return folder / "particles.mrcs"


@pytest.fixture
def table(stack: Path) -> ParticleTable:
    rows = [
        (f"{i + 1:06d}@particles.mrcs", "m 1.mrc", "10", "20", "30", "9000", "9100", "15", "0.5", quote(str(stack)))
        for i in range(COUNT)
    ]
    optics = {"rlnOpticsGroupName": "my group", "rlnVoltage": "300", "rlnSphericalAberration": "2.7"}
    optics |= {"rlnAmplitudeContrast": "0.1", "rlnImagePixelSize": "3.0", "rlnMtfFileName": "gone.star"}
    group = OpticsGroup(tuple(optics.items()))
    return ParticleTable(LABELS, rows, (group,), np.zeros(COUNT, np.int64), source="half.star")


@pytest.fixture
def relion(tmp_path: Path) -> Path:
    """A folder with a relion_reconstruct that keeps its words and its star, and answers with a map of ones."""
    folder = tmp_path / "bin"
    with mrcfile.new(tmp_path / "ones.mrc", data=np.ones((BOX, BOX, BOX), np.float32)) as mrc:
        mrc.voxel_size = 3.0
    body = f'echo "$@" > {tmp_path}/words; pwd > {tmp_path}/where; cp particles.star {tmp_path}/given.star\n'
    body += f"readlink -f stack_000001.mrcs > {tmp_path}/stack; cp {tmp_path}/ones.mrc map.mrc"
    program(folder, "relion_reconstruct", body)
    program(folder, "relion_reconstruct_mpi", body)
    return folder


def engine(relion: Path, **options: object) -> RelionEngine:
    return RelionEngine(EngineSettings(kind="relion", relion_folder=relion, **options))


def test_relion_gets_what_a_map_needs_and_only_that(
    relion: Path, table: ParticleTable, stack: Path, tmp_path: Path
) -> None:
    found = engine(relion, skip_gridding=True).reconstruct(table, "D2")
    assert (tmp_path / "words").read_text() == (
        "--i particles.star --o map.mrc --ctf --pad 2 --sym D2 --skip_gridding\n"
    )
    given = read_star(tmp_path / "given.star")
    assert given.labels == ("rlnImageName", *LABELS[2:8])
    assert given.column("rlnImageName")[5] == "000006@stack_000001.mrcs"
    assert (tmp_path / "stack").read_text().strip() == str(stack.resolve())
    assert given.optics[0].number("rlnImageSize") == BOX
    assert given.optics[0].text("rlnMtfFileName") is None
    assert (found.volume == 1).all()
    assert (found.pixel_size_angstrom, found.num_particles, found.engine) == (3.0, COUNT, "relion --skip_gridding")
    assert not Path((tmp_path / "where").read_text().strip()).exists()


def test_weights_go_to_the_figure_of_merit_which_is_else_left_out(
    relion: Path, table: ParticleTable, tmp_path: Path
) -> None:
    weights = np.linspace(0, 1, COUNT)
    engine(relion).reconstruct(table, "C1", weights=weights)
    assert "--fom_weighting" in (tmp_path / "words").read_text()
    np.testing.assert_allclose(read_star(tmp_path / "given.star").numbers("rlnParticleFigureOfMerit"), weights)


def test_phase_flipped_images_are_declared(relion: Path, table: ParticleTable, tmp_path: Path) -> None:
    values = (*table.optics[0].values, ("rlnCtfDataArePhaseFlipped", "1"))
    engine(relion).reconstruct(replace(table, optics=(OpticsGroup(values),)), "C1")
    assert "--ctf_phase_flipped" in (tmp_path / "words").read_text()
    mixed = replace(table, optics=(OpticsGroup(values), table.optics[0]), optics_index=np.array([0, 1, 0, 0, 1, 1]))
    with pytest.raises(InvalidStarError, match="some optics groups are phase-flipped"):
        engine(relion).reconstruct(mixed, "C1")


def test_more_processes_go_through_mpirun(relion: Path, tmp_path: Path) -> None:
    mpirun = program(tmp_path / "mpi", "mpirun", "true")
    settings = EngineSettings(
        kind="relion", relion_folder=relion, processes=3, mpirun=f"{mpirun} --allow-run-as-root --oversubscribe"
    )
    words = reconstruct_command(settings, ["--sym", "C1"], tmp_path)
    assert words[:5] == [str(mpirun), "--allow-run-as-root", "--oversubscribe", "-np", "3"]
    assert words[5:8] == [str(relion / "relion_reconstruct_mpi"), "--i", "particles.star"]


def test_container_sees_the_stacks_and_gets_the_number_of_processes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apptainer = program(tmp_path / "bin", "apptainer", "true")
    monkeypatch.setenv("PATH", str(apptainer.parent), prepend=os.pathsep)
    image = tmp_path / "relion.sif"
    settings = EngineSettings(kind="relion", singularity_image=image, processes=4)
    with pytest.raises(InvalidSettingsError, match="is no file"):
        reconstruct_command(settings, [], tmp_path)
    image.touch()
    words = reconstruct_command(settings, ["--sym", "C1"], tmp_path, [Path("/far/a.mrcs"), Path("/far/b.mrcs")])
    expected = [str(apptainer), "run", "--bind", str(tmp_path), "--bind", "/far", "--pwd", str(tmp_path), str(image)]
    assert words[: len(expected)] == expected
    assert words[len(expected) :][:3] == ["4", "--i", "particles.star"]
    with pytest.raises(InvalidSettingsError, match="':' or ','"):
        reconstruct_command(settings, [], tmp_path, [Path("/far,away/a.mrcs")])


def test_definition_file_ships_with_the_package_and_its_runscript_starts_mpi_for_several_processes(
    tmp_path: Path,
) -> None:
    script = definition_file().split("%runscript\n")[1].split("\n%")[0]
    program(tmp_path / "bin", "relion_reconstruct", 'echo one "$@"')
    program(tmp_path / "bin", "mpirun", 'echo mpirun "$@"')
    runscript = program(tmp_path, "runscript", script)
    said = {}
    for first in ("1", "2", "x"):
        out = tmp_path / f"out{first}"
        path = f"{tmp_path}/bin:/usr/bin:/bin"
        said[first] = os.system(f"PATH={path} {runscript} {first} --i a.star > {out} 2>&1")
        said[first] = (said[first], out.read_text().split())
    assert said["1"] == (0, ["one", "--i", "a.star"])
    assert said["2"][1][-5:] == ["-np", "2", "relion_reconstruct_mpi", "--i", "a.star"]
    assert said["x"][0] != 0


@pytest.mark.parametrize("label", ["rlnAngleRot", "rlnDefocusU", "rlnDefocusAngle"])
@pytest.mark.parametrize("kind", ["relion", "builtin"])
def test_column_without_which_the_map_would_be_wrong_is_asked_for(
    relion: Path, table: ParticleTable, tmp_path: Path, label: str, kind: str
) -> None:
    chosen = engine(relion) if kind == "relion" else BuiltinEngine()
    with pytest.raises(InvalidStarError, match=f"half.star: no column {label}"):
        chosen.reconstruct(table.without([label]), "C1")
    assert not (tmp_path / "words").exists()


@pytest.mark.parametrize(
    ("label", "text", "said"),
    [("rlnAngleTilt", "-999", "row 1 and 5 more have no pose"), ("rlnDefocusV", "nan", "rlnDefocusV is nan")],
)
def test_row_without_a_number_is_named(relion: Path, table: ParticleTable, label: str, text: str, said: str) -> None:
    with pytest.raises(InvalidStarError, match=said):
        engine(relion).reconstruct(table.with_columns({label: [text] * COUNT}), "C1")


def test_wrong_image_size_in_the_optics_table_is_refused(relion: Path, table: ParticleTable) -> None:
    wrong = OpticsGroup((*table.optics[0].values, ("rlnImageSize", "16")))
    with pytest.raises(InvalidStarError, match="rlnImageSize 16, the image 8 pixels"):
        engine(relion).reconstruct(replace(table, optics=(wrong,)), "C1")


def test_image_beyond_the_end_of_its_stack_is_refused(relion: Path, table: ParticleTable) -> None:
    names = [*table.column("rlnImageName")[1:], "000007@particles.mrcs"]
    with pytest.raises(NotSettledError, match="6 images, a row asks for 7"):
        engine(relion).reconstruct(table.with_columns({"rlnImageName": names}), "C1")


@pytest.mark.parametrize("weights", [np.ones(COUNT - 1), np.zeros(COUNT), np.full(COUNT, -1.0), np.full(COUNT, np.nan)])
def test_weights_that_are_none_are_refused(relion: Path, table: ParticleTable, weights: np.ndarray) -> None:
    for chosen in (engine(relion), BuiltinEngine()):
        with pytest.raises(ValueError, match="weights"):
            chosen.reconstruct(table, "C1", weights=weights)


def test_missing_program_is_named_with_the_remedy(tmp_path: Path, table: ParticleTable) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidSettingsError, match=r"relion_reconstruct is not in .*; install RELION"):
        engine(tmp_path / "empty").reconstruct(table, "C1")


def test_failing_program_is_quoted(tmp_path: Path, table: ParticleTable) -> None:
    folder = tmp_path / "bin"
    program(folder, "relion_reconstruct", "echo 'ERROR: out of memory' >&2; exit 3")
    with pytest.raises(ExternalProgramError, match=r"relion_reconstruct --i .*exit status 3: ERROR: out of memory"):
        engine(folder).reconstruct(table, "C1")


def test_progress_follows_the_bar_and_never_falls(tmp_path: Path) -> None:
    lines = [f"printf '   0/   1 sec {'.' * dots}~~(,_,\">\\r'" for dots in (1, 15, 30, 20, 60)]
    seen: list[float] = []
    run_program([str(program(tmp_path, "bar", "; sleep 0.05; ".join(lines)))], tmp_path, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) >= 2


def test_program_is_ended_when_we_are_interrupted(tmp_path: Path) -> None:
    """It ignores the interrupt that a terminal would give it too, as mpirun's children may."""
    script = program(tmp_path, "endless", f"trap '' INT; echo $$ > {tmp_path}/pid; exec sleep 60")

    def interrupt() -> None:
        deadline = time.monotonic() + 10
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # A test run in a shell's background starts with the interrupt ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run_program([str(script)], tmp_path)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_another_version_of_the_program_is_another_engine_to_a_cache(tmp_path: Path) -> None:
    engine = RelionEngine(EngineSettings(kind="relion", relion_folder=tmp_path))
    with pytest.raises(InvalidSettingsError, match="relion_reconstruct"):
        _ = engine.identity
    program(tmp_path, "relion_reconstruct", "exit 0")
    first = engine.identity
    assert engine.identity == first
    program(tmp_path, "relion_reconstruct", "exit 0  # upgraded")
    assert engine.identity != first
    assert engine.name == "relion"


def test_mpi_that_refuses_root_is_told_the_option_to_give(tmp_path: Path) -> None:
    script = program(tmp_path, "mpi", "echo 'mpirun has detected an attempt; use --allow-run-as-root' >&2; exit 1")
    with pytest.raises(ExternalProgramError, match="give mpirun as 'mpirun --allow-run-as-root'"):
        run_program([str(script)], tmp_path)


def test_engines_are_made_from_settings() -> None:
    assert engine_from(EngineSettings()).name == "builtin"
    names = {engine_from(EngineSettings(kind="relion", skip_gridding=skip)).name for skip in (False, True)}
    assert names == {"relion", "relion --skip_gridding"}
