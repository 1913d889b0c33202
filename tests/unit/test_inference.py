"""Prediction from a checkpoint, and from a star's rows: right model, equal bits, bad images without a pose."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from samples.models import TINY

from cesped_stream.errors import NotSettledError
from cesped_stream.inference import PoseBatch, Predictor
from cesped_stream.model.checkpoint import CheckpointManifest, HalfRecord, publish_checkpoint
from cesped_stream.model.device import pick_device
from cesped_stream.model.image2sphere import Image2Sphere
from cesped_stream.particles.flags import ImageFlag
from cesped_stream.particles.stacks import StackReader, write_stack
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.pipeline import infer_table
from cesped_stream.settings import InferenceSettings, PreprocessSettings, TrainingSettings
from cesped_stream.so3.grids import pose_grid

SIDE = 16
SETTINGS = InferenceSettings(batch_size=16, top_k=2, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    states = {}
    for half in (0, 1):
        model = Image2Sphere(TINY)
        with torch.no_grad():
            for _ in range(20):
                model(torch.randn(16, 1, SIDE, SIDE))
            model.head.so3_convolution.filters.mul_(20)  # sharp: top poses that are not ties
        states[half] = model.state_dict()
    manifest = CheckpointManifest(
        preset="small",
        model=TINY,
        preprocess=PreprocessSettings(image_size=SIDE),
        network_pixel_size_angstrom=5.0,
        symmetry="C1",
        halves={half: HalfRecord(num_training=1, num_validation=0, steps=1) for half in (0, 1)},
        origin="random",
        independence="independent",
        stopped_by="steps",
        training=TrainingSettings(),
    )
    return publish_checkpoint(tmp_path_factory.mktemp("checkpoints"), manifest, states)[0]


@pytest.fixture
def predictor(folder: Path) -> Predictor:
    return Predictor(folder, SETTINGS)


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def assert_same_bits(a: PoseBatch, b: PoseBatch) -> None:
    for name in a.__dataclass_fields__:
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name


def rows(batch: PoseBatch, index: np.ndarray) -> PoseBatch:  # type: ignore[type-arg]
    return PoseBatch(**{name: getattr(batch, name)[index] for name in batch.__dataclass_fields__})


def test_the_pose_is_the_grid_rotation_of_the_models_best_mode(predictor: Predictor) -> None:
    x = images(5)
    poses = predictor.predict(x, [0] * 5)
    model = predictor._models[0]
    with torch.no_grad():
        best = model(x).argmax(1).numpy()
    np.testing.assert_allclose(poses.rotation, pose_grid(1)[best], atol=1e-12)
    assert poses.rotation.dtype == poses.confidence.dtype == np.float64
    assert (poses.confidence > 0).all() and (poses.top_probability.sum(1) <= 1 + 1e-6).all()
    assert (np.diff(poses.top_probability, axis=1) <= 0).all()
    np.testing.assert_array_equal(poses.top_rotation[:, 0], poses.rotation)


def test_each_particle_is_seen_by_its_own_half_or_by_the_other(folder: Path) -> None:
    x, halves = images(6), np.array([0, 1, 1, 0, 1, 0])
    own = Predictor(folder, SETTINGS).predict(x, halves)
    other = Predictor(folder, SETTINGS, "cross_half").predict(x, 1 - halves)
    assert_same_bits(own, other)
    swapped = Predictor(folder, SETTINGS).predict(x, 1 - halves)
    assert (own.confidence != swapped.confidence).all()


def test_order_neighbours_and_number_of_rows_do_not_change_a_bit(predictor: Predictor) -> None:
    x, halves = images(37), np.arange(37) % 2
    together = predictor.predict(x, halves)
    order = np.random.default_rng(0).permutation(37)
    assert_same_bits(predictor.predict(x[order], halves[order]), rows(together, order))
    for k in (0, 17, 36):
        assert_same_bits(predictor.predict(x[k : k + 1], halves[k : k + 1]), rows(together, np.array([k])))


def test_a_small_batch_is_rounded_up_to_where_bits_do_not_depend_on_the_place(folder: Path) -> None:
    assert Predictor(folder, SETTINGS.model_copy(update={"batch_size": 3})).batch_size == 16
    assert Predictor(folder, SETTINGS.model_copy(update={"batch_size": 33})).batch_size == 48


def test_a_pose_that_is_no_number_is_flagged_and_the_others_stay(predictor: Predictor) -> None:
    poses = predictor.predict(images(5), [0] * 5)
    assert poses.without_failed() is poses and len(PoseBatch.empty(0, 2).without_failed()) == 0
    spoilt = PoseBatch.joined([poses])
    spoilt.confidence[1], spoilt.rotation[3, 0, 0], spoilt.digest[3] = np.nan, np.inf, 7
    found = spoilt.without_failed()
    assert found.flag.tolist() == [0, ImageFlag.FAILED, 0, ImageFlag.FAILED, 0] and (found.digest[3] == 7).all()
    assert (found.confidence[[1, 3]] == 0).all() and np.isnan(found.rotation[[1, 3]]).all()
    assert_same_bits(rows(found, np.array([0, 2, 4])), rows(poses, np.array([0, 2, 4])))


def test_no_image_gives_no_pose(predictor: Predictor) -> None:
    assert len(predictor.predict(images(0), [])) == 0


@pytest.mark.parametrize("halves", [[0, 2], [0], [0, 1, 1]])
def test_wrong_half_sets_are_refused(predictor: Predictor, halves: list[int]) -> None:
    with pytest.raises(ValueError, match="each 0 or 1"):
        predictor.predict(images(2), halves)


def test_when_cuda_memory_runs_out_the_batch_is_halved_and_stays_so(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = predictor.predict(images(20), [0] * 20)
    of_batch, sizes = predictor._of_batch, []

    def tight(model: Image2Sphere, x: torch.Tensor, make: Callable[[torch.Tensor], PoseBatch]) -> PoseBatch:
        sizes.append((predictor.batch_size, len(x)))
        if predictor.batch_size > 8:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return of_batch(model, x, make)

    monkeypatch.setattr(predictor, "_of_batch", tight)
    poses = predictor.predict(images(20), [0] * 20)
    assert sizes == [(16, 16), (8, 8), (8, 8), (8, 4)]
    assert predictor.batch_size == 8
    np.testing.assert_allclose(poses.confidence, expected.confidence, atol=1e-5)


def test_memory_that_never_suffices_is_an_error_not_a_loop(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(model: Image2Sphere, x: torch.Tensor, make: Callable[[torch.Tensor], PoseBatch]) -> PoseBatch:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predictor, "_of_batch", never)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        predictor.predict(images(2), [0, 1])


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="no usable CUDA GPU"):
        pick_device("cuda")


def test_bfloat16_gives_nearly_the_same_confidence(folder: Path) -> None:
    coarse = Predictor(folder, SETTINGS.model_copy(update={"precision": "bfloat16"}))
    x = images(16)
    exact = Predictor(folder, SETTINGS).predict(x, [0] * 16).confidence
    assert 0 < np.abs(coarse.predict(x, [0] * 16).confidence - exact).max() < 0.2


BOXES = {"a.mrcs": (20, 4.0), "b.mrcs": (24, 4.0)}
BAD = {3: (np.nan, ImageFlag.NAN), 7: (np.inf, ImageFlag.INF)}


@pytest.fixture
def reader() -> Iterator[StackReader]:
    with StackReader() as reader:
        yield reader


@pytest.fixture
def table(tmp_path: Path) -> ParticleTable:
    """Forty rows over two stacks of two box sizes and two optics groups; rows 3, 7 and 12 have bad images."""
    rng = np.random.default_rng(0)
    groups, table_rows, optics_index = [], [], []
    for k, (name, (box, pixel_size)) in enumerate(BOXES.items()):
        stack = rng.normal(size=(20, box, box)).astype(np.float32)
        if k == 0:
            for row, (value, _) in BAD.items():
                stack[row // 2, 4, 4] = value
            stack[6] = 3.0
        write_stack(tmp_path / name, stack, pixel_size)
        values = {"rlnVoltage": "300", "rlnSphericalAberration": "2.7", "rlnAmplitudeContrast": "0.1"}
        values |= {"rlnImagePixelSize": str(pixel_size), "rlnOpticsGroupName": name}
        groups.append(OpticsGroup(tuple(values.items())))
    for row in range(40):
        name = list(BOXES)[row % 2] if row not in BAD else "a.mrcs"
        table_rows.append((f"{row // 2 + 1:06d}@{name}", "m1", "15000", "14500", "30", str(1 + row % 3 // 2)))
        optics_index.append(list(BOXES).index(name))
    labels = ("rlnImageName", "rlnMicrographName", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnRandomSubset")
    return ParticleTable(labels, table_rows, tuple(groups), np.array(optics_index, np.int64))


def test_every_usable_row_of_a_star_gets_a_pose_and_every_row_a_digest(
    predictor: Predictor, table: ParticleTable, reader: StackReader, tmp_path: Path
) -> None:
    poses = infer_table(predictor, table, reader, root=tmp_path)
    flags = np.zeros(40, np.uint8)
    for row, (_, flag) in BAD.items():
        flags[row] = flags[row // 2 * 2] = flag
    flags[12] = ImageFlag.CONSTANT
    np.testing.assert_array_equal(poses.flag, flags)
    usable = flags == 0
    assert np.isfinite(poses.rotation[usable]).all() and (poses.confidence[usable] > 0).all()
    assert np.isnan(poses.rotation[~usable]).all() and (poses.confidence[~usable] == 0).all()
    assert np.isnan(poses.top_rotation[~usable]).all()
    assert poses.digest.any(axis=1).all()
    _, digests = reader.read(tmp_path / "a.mrcs", [0])
    np.testing.assert_array_equal(poses.digest[0], digests[0])


def test_how_a_star_is_cut_into_batches_does_not_change_a_bit(
    predictor: Predictor, table: ParticleTable, reader: StackReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = infer_table(predictor, table, reader, root=tmp_path)
    order = np.random.default_rng(1).permutation(40)
    assert_same_bits(infer_table(predictor, table.select(order), reader, root=tmp_path), rows(whole, order))
    for part in np.array_split(np.arange(40), 3):
        assert_same_bits(infer_table(predictor, table.select(part), reader, root=tmp_path), rows(whole, part))
    monkeypatch.setattr("cesped_stream.pipeline.ROWS_READ_AT_ONCE", 7)
    monkeypatch.setattr("cesped_stream.pipeline.BATCHES_HELD", 1)
    assert_same_bits(infer_table(predictor, table, reader, root=tmp_path), whole)


def test_a_row_without_a_ctf_is_flagged_and_changes_no_bit_of_the_others(
    predictor: Predictor, table: ParticleTable, reader: StackReader, tmp_path: Path
) -> None:
    whole = infer_table(predictor, table, reader, root=tmp_path)
    defocus = table.column("rlnDefocusU")
    found = infer_table(
        predictor,
        table.with_columns({"rlnDefocusU": ["nan" if row == 9 else value for row, value in enumerate(defocus)]}),
        reader,
        root=tmp_path,
    )
    assert found.flag[9] == ImageFlag.NO_CTF and np.isnan(found.rotation[9]).all()
    others = np.delete(np.arange(40), 9)
    assert_same_bits(rows(found, others), rows(whole, others))


def test_a_table_without_rows_gives_no_poses(
    predictor: Predictor, table: ParticleTable, reader: StackReader, tmp_path: Path
) -> None:
    assert len(infer_table(predictor, table.select([]), reader, root=tmp_path)) == 0


def test_a_row_beyond_its_stack_is_an_error_that_names_it(
    predictor: Predictor, table: ParticleTable, reader: StackReader, tmp_path: Path
) -> None:
    beyond = table.select([0]).with_columns({"rlnImageName": ["000021@a.mrcs"]})
    with pytest.raises(NotSettledError, match=r"a\.mrcs.*21"):
        infer_table(predictor, beyond, reader, root=tmp_path)


def test_a_distribution_holds_the_poses_that_predict_finds(predictor: Predictor) -> None:
    halves = [0, 1, 1, 0, 1]
    distribution = predictor.distribution(images(5), halves, 40)
    assert distribution.indices.shape == (5, 40) and not distribution.asymmetric_unit
    poses = predictor.predict(images(5), halves)
    np.testing.assert_array_equal(distribution.rotations()[:, 0], poses.rotation)
    assert (np.exp(distribution.log_weights).sum(1) <= 1 + 1e-5).all()
    later = predictor.distribution(images(5)[3:], halves[3:], 40)
    np.testing.assert_array_equal(later.indices, distribution.indices[3:])
    np.testing.assert_array_equal(later.log_weights, distribution.log_weights[3:])
