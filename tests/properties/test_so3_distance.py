"""Angular error is a distance between orbits of the point group."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

rotations = st.integers(0, 2**32 - 1).map(
    lambda seed: Rotation.random(random_state=np.random.default_rng(seed)).as_matrix()
)
symmetries = st.sampled_from(["C1", "C2", "C5", "D2", "D7", "T", "O", "I", "I1", "I3", "I4"])
quick = settings(max_examples=60, deadline=None)


@quick
@given(rotations, symmetries)
def test_a_groups_orbit_is_one_pose(rotation: np.ndarray, symmetry: str) -> None:
    group = group_rotations(symmetry)
    assert angular_error_deg(rotation, group @ rotation, group).max() < 1e-6


@quick
@given(rotations, rotations, symmetries, st.integers(0, 10**6), st.integers(0, 10**6))
def test_error_does_not_depend_on_which_mates_are_compared(
    a: np.ndarray, b: np.ndarray, symmetry: str, i: int, j: int
) -> None:
    group = group_rotations(symmetry)
    plain = angular_error_deg(a, b, group)
    mates = angular_error_deg(group[i % len(group)] @ a, group[j % len(group)] @ b, group)
    np.testing.assert_allclose(mates, plain, atol=1e-6)


@quick
@given(rotations, rotations, symmetries)
def test_error_is_the_same_both_ways(a: np.ndarray, b: np.ndarray, symmetry: str) -> None:
    group = group_rotations(symmetry)
    np.testing.assert_allclose(angular_error_deg(a, b, group), angular_error_deg(b, a, group), atol=1e-6)


@quick
@given(rotations, rotations, rotations, symmetries)
def test_error_obeys_the_triangle_inequality(a: np.ndarray, b: np.ndarray, c: np.ndarray, symmetry: str) -> None:
    group = group_rotations(symmetry)
    detour = angular_error_deg(a, b, group) + angular_error_deg(b, c, group)
    assert angular_error_deg(a, c, group) <= detour + 1e-6


@quick
@given(rotations, rotations, rotations, symmetries)
def test_turning_both_images_alike_changes_nothing(
    a: np.ndarray, b: np.ndarray, turn: np.ndarray, symmetry: str
) -> None:
    group = group_rotations(symmetry)
    np.testing.assert_allclose(angular_error_deg(a @ turn, b @ turn, group), angular_error_deg(a, b, group), atol=1e-6)


@quick
@given(rotations, st.floats(1e-7, 180), st.integers(0, 2**32 - 1))
def test_error_is_the_angle_turned(rotation: np.ndarray, angle_deg: float, seed: int) -> None:
    axis = np.random.default_rng(seed).normal(size=3)
    turn = Rotation.from_rotvec(np.deg2rad(angle_deg) * axis / np.linalg.norm(axis)).as_matrix()
    error = angular_error_deg(rotation, rotation @ turn, group_rotations("C1"))
    np.testing.assert_allclose(error, angle_deg, rtol=1e-6, atol=1e-9)
