"""A star's blocks and columns tell what it is about."""

from pathlib import Path

import pytest
from samples.relion_project import RelionProject
from samples.stars import quoted_names, relion30, relion31, windows_line_ends, written

from cesped_stream.errors import UnreachableFileError
from cesped_stream.particles.star_kind import StarKind, star_kind


@pytest.mark.parametrize("data", [relion31(), relion30(), quoted_names(), windows_line_ends(), relion31(5000)])
def test_stars_of_particles_of_every_writer_are_particles(tmp_path: Path, data: bytes) -> None:
    assert star_kind(written(tmp_path, data)) is StarKind.PARTICLES


def test_a_project_has_the_kinds_of_stars_that_it_was_made_of(tmp_path: Path) -> None:
    project = RelionProject(tmp_path)
    found: dict[str, int] = {}
    for star in tmp_path.rglob("*.star"):
        kind = star_kind(star)
        found[str(kind)] = found.get(str(kind), 0) + 1
    by_name = {"in RELION's Trash", "of RELION's iterations"}
    expected = {kind: many for kind, many in project.kinds.items() if kind not in by_name}
    assert {kind: many for kind, many in found.items() if kind != "particles"} == expected
    assert found["particles"] == 3 + sum(project.kinds[name] for name in by_name)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", StarKind.EMPTY),
        (" \n\n", StarKind.EMPTY),
        ("data_particles\n\nloop_\n_rlnMicrographName #1\nmic.mrc\n", StarKind.PARTICLES),
        ("data_optics\n\nloop_\n_rlnOpticsGroup #1\n1\n", StarKind.PARTICLES),
        ("data_optics\n\nloop_\n_rlnOpticsGroup #1\n1\n\ndata_particles\n", StarKind.PARTICLES),
        ("data_\n", StarKind.PARTICLES),
        ("some text\n", StarKind.PARTICLES),
        ("data_\n\nloop_\n_rlnMicrographName #1\n_rlnCoordinateX #2\n", StarKind.COORDINATES),
        ("data_micrographs\n\nloop_\n_rlnMicrographName #1\nrlnImageName\n", StarKind.MICROGRAPHS),
        ("data_\n\nloop_\n_rlnFourierShellCorrelation #1\n", StarKind.RESOLUTION),
        ("data_schedule_general\n\n_rlnScheduleName x\n", StarKind.OTHER),
    ],
)
def test_what_may_still_get_particles_is_read_and_the_rest_is_not(tmp_path: Path, text: str, kind: StarKind) -> None:
    assert star_kind(written(tmp_path, text.encode())) is kind


def test_images_behind_a_long_other_block_are_found(tmp_path: Path) -> None:
    other = b"data_model_general\n\nloop_\n_rlnResolution #1\n" + b"1.000000\n" * 300_000 + b"\n"
    assert star_kind(written(tmp_path, other)) is StarKind.MODEL
    assert star_kind(written(tmp_path, other + relion31(2))) is StarKind.PARTICLES


def test_a_micrographs_own_star_with_its_optics_is_particles(tmp_path: Path) -> None:
    assert star_kind(written(tmp_path, relion30(), "mic_extract.star")) is StarKind.PARTICLES
    assert star_kind(written(tmp_path, relion31(), "mic_extract.star")) is StarKind.PARTICLES


def test_a_file_that_is_away_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnreachableFileError, match=r"nowhere\.star: No such file"):
        star_kind(tmp_path / "nowhere.star")
