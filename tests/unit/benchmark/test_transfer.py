"""A checkpoint of another entry poses only what it can have seen the like of."""

import pytest
from samples.models import TINY
from support.scored import small_entry, truth_of

from cesped_stream.benchmark.transfer import check_transfer, why_not_known_to_be_of_another_entry
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.model.checkpoint import CheckpointManifest, HalfRecord
from cesped_stream.particles.table import ParticleTable
from cesped_stream.settings import PreprocessSettings, TrainingSettings

FIELD = 24 * 8.0


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ParticleTable:
    """Particles of 24 px at 8 A."""
    return truth_of(small_entry(tmp_path_factory.mktemp("entry") / "toy", num_particles=4))


def trained(field: float, *, image_size: int = 16, symmetry: str = "C1") -> CheckpointManifest:
    return CheckpointManifest(
        preset="small",
        model=TINY,
        preprocess=PreprocessSettings(image_size=image_size, crop_angstrom=field),
        network_pixel_size_angstrom=field / image_size,
        symmetry=symmetry,
        halves={half: HalfRecord(num_training=1, num_validation=0, steps=1) for half in (0, 1)},
        origin="random",
        independence="unknown",
        stopped_by="steps",
        training=TrainingSettings(),
        trained_on="10166",
    )


def test_the_same_field_of_view_needs_no_word(table: ParticleTable) -> None:
    assert check_transfer(trained(FIELD), table, "C1") == []


@pytest.mark.parametrize(
    ("field", "words"), [(FIELD * 1.5, "filled with 0"), (FIELD / 2, "sees the middle 96 Å"), (FIELD, None)]
)
def test_another_field_is_told(table: ParticleTable, field: float, words: str | None) -> None:
    said = " ".join(check_transfer(trained(field), table, "C1"))
    assert (words in said) if words else said == ""


def test_coarser_pixels_than_the_networks_are_told(table: ParticleTable) -> None:
    (said,) = check_transfer(trained(FIELD, image_size=48), table, "C1")
    assert "coarser than the network's 4 Å" in said


@pytest.mark.parametrize("field", [FIELD * 2.1, FIELD / 3.1])
def test_an_absurd_field_is_refused(table: ParticleTable, field: float) -> None:
    with pytest.raises(InvalidSettingsError, match=r"24 px at 8 Å .*need a checkpoint of their own"):
        check_transfer(trained(field), table, "C1")


def test_another_symmetry_is_an_error_that_names_both_unless_it_is_allowed(table: ParticleTable) -> None:
    manifest = trained(FIELD)
    with pytest.raises(InvalidSettingsError, match=r"trained on 10166\) is for C1, this entry is D2.*--allow-symmetry"):
        check_transfer(manifest, table, "D2")
    assert check_transfer(manifest, table, "D2", allow_symmetry=True) == ["Trained for C1; errors are under D2."]


@pytest.mark.parametrize(
    ("name", "origin", "why"),
    [
        ("10166", "random", ""),
        ("10166", "imagenet", ""),
        ("", "random", "does not name"),
        ("particles.star", "random", "a star file"),
        ("10648", "random", "trained on 10648"),
        ("consensus_10648", "random", "trained on consensus_10648"),
        ("10166", "checkpoint i2s-0123456789ab", "began from checkpoint"),
    ],
)
def test_a_checkpoint_is_of_another_entry_only_where_that_is_known(name: str, origin: str, why: str) -> None:
    manifest = trained(FIELD).model_copy(update={"trained_on": name, "origin": origin})
    said = why_not_known_to_be_of_another_entry(manifest, "10648")
    assert (why in said) if why else said == ""
