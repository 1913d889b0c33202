"""A point group is what RELION's --sym takes; anything else is told what it is and what may be meant."""

import pytest
from pydantic import ValidationError

from cesped_stream.errors import InvalidSettingsError
from cesped_stream.point_group import point_group_name
from cesped_stream.settings import SimulationSettings, TrainingSettings
from cesped_stream.so3.symmetry import group_rotations


@pytest.mark.parametrize(
    ("said", "name"),
    [("C1", "C1"), ("c1", "C1"), ("i3", "I3"), ("D2 ", "D2"), (" o", "O"), ("t", "T"), ("I", "I"), ("C999", "C999")],
)
def test_relions_names_are_taken_in_small_letters_and_with_spaces(said: str, name: str) -> None:
    assert point_group_name(said) == name
    assert TrainingSettings(symmetry=said).symmetry == SimulationSettings(symmetry=said).symmetry == name


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("C0", "has no order: no symmetry is C1, a two-fold axis C2"),
        ("D", "has no order: no symmetry is C1, a two-fold axis D2"),
        ("X2", "is no point group"),
        ("", "is no point group"),
        ("4", "is a number: did you mean C4, or D4?"),
        ("C4V", "mirror planes or inversion, which no protein has: did you mean C4?"),
        ("d2h", "did you mean D2?"),
        ("Ih", "did you mean I?"),
        ("TD", "did you mean T?"),
        ("CS", "did you mean C1?"),
        ("I5", "is no icosahedral setting"),
        ("C1000", "has an order that is not from 1 to 999"),
    ],
)
def test_any_other_name_is_told_what_it_is_and_what_is_taken(said: str, why: str) -> None:
    with pytest.raises(InvalidSettingsError) as refused:
        point_group_name(said)
    assert repr(said) in str(refused.value) and why in str(refused.value)
    assert "give C1 (none), Cn" in str(refused.value)
    with pytest.raises(InvalidSettingsError, match="symmetry: "):
        group_rotations(said)
    with pytest.raises(ValidationError, match="give C1"):
        TrainingSettings(symmetry=said)


def test_every_suggested_name_is_one() -> None:
    for said in ("C4V", "C4H", "D2V", "D3H", "TD", "TH", "OH", "IH", "I2H", "CI", "CS", "C12V"):
        with pytest.raises(InvalidSettingsError) as refused:
            point_group_name(said)
        suggested = str(refused.value).partition("did you mean ")[2].partition("?")[0]
        assert len(group_rotations(suggested)) > 0
