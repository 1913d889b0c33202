"""CTF values in either table, impossible ones, and pixel sizes, as RELION takes them."""

from dataclasses import replace
from pathlib import Path

import pytest
from samples.stars import ctf_star, relion30, relion31, written

from cesped_stream.errors import InvalidStarError
from cesped_stream.particles.missing_columns import filled_rows
from cesped_stream.particles.star import concatenated, read_star, read_tail, star_bytes

PARTICLE = {
    **{"rlnVoltage": "200", "rlnSphericalAberration": "1.4", "rlnAmplitudeContrast": "0.3", "rlnPhaseShift": "70"},
    **{"rlnCtfBfactor": "40", "rlnCtfScalefactor": "0.5"},
    **{"rlnDefocusU": "9000", "rlnDefocusV": "7000", "rlnDefocusAngle": "20"},
}
GROUP = {
    **{"rlnVoltage": "120", "rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.1", "rlnPhaseShift": "30"},
    **{"rlnCtfBfactor": "90", "rlnCtfScalefactor": "1.5"},
    **{"rlnDefocusU": "12000", "rlnDefocusV": "5000", "rlnDefocusAngle": "65"},
}
FIELDS = {
    "rlnVoltage": "voltage_kv",
    "rlnSphericalAberration": "spherical_aberration_mm",
    "rlnAmplitudeContrast": "amplitude_contrast",
    "rlnPhaseShift": "phase_shift_deg",
    "rlnCtfBfactor": "bfactor_angstrom2",
    "rlnCtfScalefactor": "scale",
    "rlnDefocusU": "defocus_u_angstrom",
    "rlnDefocusV": "defocus_v_angstrom",
    "rlnDefocusAngle": "defocus_angle_deg",
}


@pytest.mark.parametrize("label", FIELDS)
def test_ctf_value_is_the_particles_else_its_groups(label: str, tmp_path: Path) -> None:
    others = {a: b for a, b in PARTICLE.items() if a != label}
    of_group = read_star(written(tmp_path, ctf_star(others, {label: GROUP[label]})))
    both = read_star(written(tmp_path, ctf_star(PARTICLE, GROUP)))
    assert getattr(of_group.ctf_parameters(), FIELDS[label]).tolist() == [float(GROUP[label])] * 2
    assert getattr(both.ctf_parameters(), FIELDS[label]).tolist() == [float(PARTICLE[label])] * 2


@pytest.mark.parametrize("label", FIELDS)
def test_ctf_value_stays_when_the_star_is_written_again(label: str, tmp_path: Path) -> None:
    others = {a: b for a, b in PARTICLE.items() if a != label}
    for star in (ctf_star(others, {label: GROUP[label]}), ctf_star(PARTICLE, GROUP)):
        first = read_star(written(tmp_path, star))
        again = read_star(written(tmp_path, star_bytes(first), "again.star"))
        field = FIELDS[label]
        assert getattr(again.ctf_parameters(), field).tolist() == getattr(first.ctf_parameters(), field).tolist()
        assert again.optics == first.optics


def test_phase_shift_of_groups_stays_beside_rows_that_have_their_own(tmp_path: Path) -> None:
    of_group = read_star(written(tmp_path, ctf_star({**PARTICLE, "rlnPhaseShift": "45"}, {})))
    own = {a: b for a, b in PARTICLE.items() if a != "rlnPhaseShift"}
    own_group = read_star(written(tmp_path, ctf_star(own, {"rlnPhaseShift": "90"})))
    own_group = own_group.select([0])
    own_group = replace(own_group, labels=of_group.labels, rows=filled_rows(of_group.labels, own_group))
    assert concatenated([of_group, own_group]).ctf_parameters().phase_shift_deg.tolist() == [45.0, 45.0, 90.0]


def test_voltages_of_the_rows_become_groups_whose_names_differ(tmp_path: Path) -> None:
    star = ctf_star(PARTICLE, {**GROUP, "rlnVoltage": "200.0"}).replace(b"2@s.mrcs 1 200 ", b"2@s.mrcs 1 300 ")
    table = read_star(written(tmp_path, star))
    assert table.ctf_parameters().voltage_kv.tolist() == [200.0, 300.0]
    assert len({group.name for group in table.optics}) == len(table.optics)
    assert "rlnVoltage" not in table


def test_phase_shift_of_some_groups_only_is_none_for_the_others(tmp_path: Path) -> None:
    data = relion31(2).replace(b"_rlnImagePixelSize #6 ", b"_rlnImagePixelSize #6 \n_rlnCtfScalefactor #7 ")
    data = data.replace(b"1.330000 \n", b"1.330000 0.5 \n").replace(b"1.060000 \n", b"1.060000 2 \n")
    assert read_star(written(tmp_path, data)).ctf_parameters().scale.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("label", "text", "why"),
    [
        ("rlnAmplitudeContrast", "10.0", "lies between 0 and 1"),
        ("rlnAmplitudeContrast", "-0.1", "lies between 0 and 1"),
        ("rlnVoltage", "0.0", "must be above 0"),
        ("rlnVoltage", "-300", "must be above 0"),
        ("rlnImagePixelSize", "-1.5", "must be above 0"),
        *((label, text, "is no finite number") for label in FIELDS for text in ("nan", "inf", "", "300kV")),
    ],
)
def test_impossible_ctf_value_is_refused_by_group_or_row(label: str, text: str, why: str, tmp_path: Path) -> None:
    cell = text or "''"
    with pytest.raises(InvalidStarError, match=f"data_optics, group 'g', {label}: '{text}' .*{why}"):
        read_star(written(tmp_path, ctf_star(PARTICLE, {**GROUP, label: cell})))
    if label == "rlnImagePixelSize":
        return
    star = ctf_star(PARTICLE, GROUP, {**PARTICLE, label: cell})
    path = written(tmp_path, star)
    with pytest.raises(InvalidStarError, match=f"star: row 2, {label}: '{text}' .*{why}"):
        read_star(path)
    ((table, _),) = read_tail(path, None)
    assert table.places_in_star() == (0,)
    assert [place for place, _ in table.refused] == [1]


@pytest.mark.parametrize("label", ["rlnVoltage", "rlnAmplitudeContrast", "rlnMagnification", "rlnDetectorPixelSize"])
def test_impossible_value_of_a_relion30_row_is_refused_alone(label: str, tmp_path: Path) -> None:
    right = {"rlnVoltage": b"300.000000", "rlnAmplitudeContrast": b"0.100000"}
    right |= {"rlnMagnification": b"10000.000000", "rlnDetectorPixelSize": b"1.500000"}
    lines = relion30(4).splitlines(keepends=True)
    lines[-3] = lines[-3].replace(right[label], b"-1", 1)
    ((table, _),) = read_tail(written(tmp_path, b"".join(lines)), None)
    assert (len(table), [place for place, _ in table.refused]) == (3, [2])
    assert f"row 3, {label}: '-1' " in table.refused[0][1]


@pytest.mark.parametrize("label", ["rlnMagnification", "rlnDetectorPixelSize", "rlnPixelSize"])
def test_pixel_sizes_that_nobody_uses_may_be_zero(label: str, tmp_path: Path) -> None:
    star = ctf_star({**PARTICLE, label: "0.000000"}, {**GROUP, label: "0.000000"})
    assert read_star(written(tmp_path, star)).pixel_sizes_angstrom().tolist() == [3.0, 3.0]


@pytest.mark.parametrize("label", [b"rlnPixelSize", b"rlnImagePixelSize"])
def test_magnification_gives_the_pixel_size_beside_another_one(label: bytes, tmp_path: Path) -> None:
    data = relion30(2).replace(b"_rlnOriginY #12", b"_rlnOriginY #12\n_" + label + b" #13")
    data = data.replace(b"000 \n", b"000 7.5 \n")
    table = read_star(written(tmp_path, data))
    assert table.pixel_sizes_angstrom().tolist() == [1.5, 1.5]
    assert table.shifts_angstrom()[0].tolist() == [1.25 * 1.5, -2.5 * 1.5]
