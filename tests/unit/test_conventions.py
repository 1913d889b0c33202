"""RELION's conventions, each against an independent statement of it."""

import numpy as np
import pytest
from scipy import constants
from scipy.spatial.transform import Rotation

from cesped_stream import conventions


def random_angles_deg(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(-180, 180, count), rng.uniform(0.01, 179.99, count), rng.uniform(-180, 180, count)], 1)


def turn(axis: str, angle_deg: float) -> np.ndarray:
    return Rotation.from_euler(axis, angle_deg, degrees=True).as_matrix()


def test_rotation_is_rz_ry_rz_of_rot_tilt_psi() -> None:
    expected = turn("Z", 20) @ turn("Y", 50) @ turn("Z", -70)
    np.testing.assert_allclose(conventions.euler_deg_to_rotation(20, 50, -70), expected[None], atol=1e-14)


def test_view_axis_is_the_last_column_and_knows_no_psi() -> None:
    rot, tilt = np.deg2rad(33), np.deg2rad(71)
    rotation = conventions.euler_deg_to_rotation(33, 71, [0, 45, 170])
    expected = [np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)]
    np.testing.assert_allclose(rotation[:, :, 2], [expected] * 3, atol=1e-14)


def test_angles_survive_the_round_trip() -> None:
    angles = random_angles_deg(500, 0)
    rotations = conventions.euler_deg_to_rotation(*angles.T)
    np.testing.assert_allclose(conventions.rotation_to_euler_deg(rotations), angles, atol=1e-7)


def test_rotations_survive_the_round_trip() -> None:
    rotations = Rotation.random(500, random_state=np.random.default_rng(1)).as_matrix()
    again = conventions.euler_deg_to_rotation(*conventions.rotation_to_euler_deg(rotations).T)
    np.testing.assert_allclose(again, rotations, atol=1e-12)


@pytest.mark.parametrize("tilt_deg", [0.0, 180.0])
def test_at_the_poles_psi_is_zero_and_the_rotation_survives(tilt_deg: float) -> None:
    rotations = conventions.euler_deg_to_rotation([0, 30, -100, 180], tilt_deg, [0, 50, -30, 90])
    angles = conventions.rotation_to_euler_deg(rotations)
    assert (angles[:, 2] == 0).all()
    np.testing.assert_allclose(angles[:, 1], tilt_deg, atol=1e-6)
    np.testing.assert_allclose(conventions.euler_deg_to_rotation(*angles.T), rotations, atol=1e-12)


@pytest.mark.parametrize("tilt_deg", [1e-6, 1e-4, 179.9999, 180 - 1e-6])
def test_next_to_the_poles_the_rotation_survives(tilt_deg: float) -> None:
    rotations = conventions.euler_deg_to_rotation([10, -150], tilt_deg, [25, 170])
    again = conventions.euler_deg_to_rotation(*conventions.rotation_to_euler_deg(rotations).T)
    np.testing.assert_allclose(again, rotations, atol=1e-9)


def test_angles_are_in_relions_ranges_without_minus_zero() -> None:
    edges = np.array([-180.0, -90, 0, 90, 180])
    rot, tilt, psi = (a.ravel() for a in np.meshgrid(edges, [0.0, 30, 90, 180], edges))
    rotations = np.concatenate(
        [
            conventions.euler_deg_to_rotation(rot, tilt, psi),
            Rotation.random(2_000, random_state=np.random.default_rng(2)).as_matrix(),
        ]
    )
    angles = conventions.rotation_to_euler_deg(rotations)
    assert (angles[:, [0, 2]] > -180).all()
    assert (angles[:, [0, 2]] <= 180).all()
    assert (angles[:, 1] >= 0).all()
    assert (angles[:, 1] <= 180).all()
    assert not np.signbit(angles[angles == 0]).any()


def test_angles_never_have_relions_values_for_unset() -> None:
    assert conventions.UNSET_ANGLES_DEG == (-999.0, 999.0)
    rotations = Rotation.random(100, random_state=np.random.default_rng(3)).as_matrix()
    assert not np.isin(conventions.rotation_to_euler_deg(rotations), conventions.UNSET_ANGLES_DEG).any()


def test_one_rotation_or_angle_is_as_good_as_many() -> None:
    assert conventions.euler_deg_to_rotation(1, 2, 3).shape == (1, 3, 3)
    assert conventions.rotation_to_euler_deg(np.eye(3)).shape == (1, 3)


def test_a_pose_has_labels_for_three_angles_and_two_shifts_in_angstrom() -> None:
    labels = [f"rln{name}" for name in ("AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst")]
    assert list(conventions.POSE_LABELS) == labels


def test_head_frame_is_the_pose_times_rx_minus_90_and_back() -> None:
    rotations = Rotation.random(20, random_state=np.random.default_rng(4)).as_matrix()
    head = conventions.rotation_to_head_frame(rotations)
    np.testing.assert_allclose(head, rotations @ turn("X", -90), atol=1e-14)
    np.testing.assert_allclose(conventions.head_frame_to_rotation(head), rotations, atol=1e-14)


def test_head_frames_y_axis_lies_along_the_view_so_that_psi_turns_about_it() -> None:
    rotations = Rotation.random(20, random_state=np.random.default_rng(5)).as_matrix()
    head = conventions.rotation_to_head_frame(rotations)
    np.testing.assert_allclose(head[:, :, 1], -rotations[:, :, 2], atol=1e-14)
    turned = conventions.rotation_to_head_frame(rotations @ turn("Z", 35))
    np.testing.assert_allclose(turned, head @ turn("Y", -35), atol=1e-14)


def test_half_sets_are_relions_random_subsets_less_one() -> None:
    assert [conventions.half_set_to_random_subset(h) for h in (0, 1)] == [1, 2]
    assert [conventions.random_subset_to_half_set(s) for s in (1, 2)] == [0, 1]


@pytest.mark.parametrize("random_subset", [-1, 0, 3])
def test_other_random_subsets_are_refused(random_subset: int) -> None:
    with pytest.raises(ValueError, match=f"rlnRandomSubset is {random_subset}"):
        conventions.random_subset_to_half_set(random_subset)


@pytest.mark.parametrize("voltage_kv", [100, 200, 300])
def test_wavelength_is_de_broglies_with_relativity(voltage_kv: float) -> None:
    energy = voltage_kv * 1e3 * constants.e
    rest = constants.m_e * constants.c**2
    metres = constants.h * constants.c / np.sqrt(energy * (energy + 2 * rest))
    assert conventions.electron_wavelength_angstrom(voltage_kv) == pytest.approx(metres * 1e10, rel=1e-5)


def test_wavelength_at_300_kv_is_the_known_one() -> None:
    assert float(conventions.electron_wavelength_angstrom(300)) == pytest.approx(0.0196875, abs=2e-7)
