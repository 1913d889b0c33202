"""Point groups: what is accepted, and that each is a group."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cesped_stream.errors import InvalidSettingsError
from cesped_stream.so3.symmetry import group_rotations, reduced_rotations

SIZES = {
    "C1": 1,
    "C2": 2,
    "C12": 12,
    "D1": 2,
    "D2": 4,
    "D7": 14,
    "T": 12,
    "O": 24,
    "I": 60,
    "I1": 60,
    "I3": 60,
    "I4": 60,
}


@pytest.mark.parametrize(("symmetry", "size"), SIZES.items())
def test_group_has_its_number_of_proper_rotations_identity_first(symmetry: str, size: int) -> None:
    group = group_rotations(symmetry)
    assert group.shape == (size, 3, 3)
    assert group.dtype == np.float64
    np.testing.assert_allclose(group[0], np.eye(3), atol=1e-15)
    np.testing.assert_allclose(group @ group.transpose(0, 2, 1), np.broadcast_to(np.eye(3), group.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(group), 1, atol=1e-12)


@pytest.mark.parametrize("symmetry", SIZES)
def test_group_is_closed_and_has_no_repeats(symmetry: str) -> None:
    group = group_rotations(symmetry)
    products = (group[:, None] @ group).reshape(-1, 9)
    traces = products @ group.reshape(-1, 9).T
    assert ((traces > 3 - 1e-9).sum(axis=1) == 1).all()


def test_i_is_relions_i2_and_no_other() -> None:
    np.testing.assert_array_equal(group_rotations("I"), group_rotations("I2"))
    for other in ("I1", "I3", "I4"):
        traces = group_rotations("I").reshape(-1, 9) @ group_rotations(other).reshape(-1, 9).T
        assert (traces.max(axis=1) < 3 - 1e-6).any()


def test_case_and_blanks_do_not_matter() -> None:
    np.testing.assert_array_equal(group_rotations(" d2 "), group_rotations("D2"))


@pytest.mark.parametrize(
    "symmetry", ["", "C", "C0", "D0", "D02", "I5", "IH", "TD", "CI", "C2V", "S4", "C1000", "helical"]
)
def test_anything_else_is_refused_by_name(symmetry: str) -> None:
    with pytest.raises(InvalidSettingsError, match="symmetry: '" + symmetry):
        group_rotations(symmetry)


def test_a_group_cannot_be_changed_by_its_users() -> None:
    with pytest.raises(ValueError, match="read-only"):
        group_rotations("C2")[0] = 0


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2", "T", "I2"])
def test_reduced_pose_is_one_for_the_whole_orbit_and_of_it(symmetry: str) -> None:
    group = group_rotations(symmetry)
    pose = Rotation.random(random_state=3).as_matrix()
    reduced = reduced_rotations(group @ pose, group)
    np.testing.assert_allclose(reduced, np.broadcast_to(reduced[0], reduced.shape), atol=1e-9)
    assert np.abs(group @ pose - reduced[0]).max((1, 2)).min() < 1e-9
    assert np.trace(reduced[0]) >= np.trace(group @ pose, axis1=1, axis2=2).max() - 1e-9


def test_reduction_is_on_the_maps_side_and_keeps_nan() -> None:
    group = group_rotations("D2")
    pose = Rotation.random(random_state=3).as_matrix()
    right = reduced_rotations(pose @ group, group)
    assert np.abs(right - right[0]).max() > 0.1
    assert np.isnan(reduced_rotations(np.full((2, 3, 3), np.nan), group)).all()
