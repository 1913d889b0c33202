"""The gallery: its score is the likelihood, its short cuts change nothing, its answers are right."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.matching import flat_noise, particles, reference, rows

from cesped_stream.gallery.search import ProjectionGallery, Proposals
from cesped_stream.imaging.band import band_slices, centred_slices
from cesped_stream.imaging.projector import MapProjector
from cesped_stream.imaging.shift_prior import fit_shift_prior
from cesped_stream.settings import GallerySettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream.so3.symmetry import group_rotations

COUNT = 60
SETTINGS = GallerySettings(grid_order=2, coarse_order=1, keep_fraction=0.2, limit_angstrom=16.0)


def proposed(gallery: ProjectionGallery, symmetry: str = "D2", snr: float = 2.0, count: int = COUNT) -> Proposals:
    images = particles(count, symmetry=symmetry, snr=snr).in_band(gallery.band)
    return gallery.propose(images, flat_noise(), rows(count))


def errors_deg(proposals: Proposals, symmetry: str = "D2") -> np.ndarray:
    truth = particles(len(proposals.log_likelihood), symmetry=symmetry).rotations
    return angular_error_deg(truth, proposals.mode_rotations[:, 0], group_rotations(symmetry))


def test_poses_and_shifts_are_found_to_the_grids_step() -> None:
    gallery = ProjectionGallery(reference("D2"), SETTINGS.model_copy(update={"grid_order": 3, "coarse_order": 2}))
    found = proposed(gallery)
    error = errors_deg(found)
    assert np.median(error) < 4.5 and np.quantile(error, 0.95) < 10
    off = np.abs(found.mode_shifts_angstrom[:, 0] - particles(COUNT, symmetry="D2").shifts_angstrom)
    assert np.median(off) < gallery.shift_step_angstrom / 2


def test_images_of_another_box_and_pixel_size_are_found_as_well() -> None:
    gallery = ProjectionGallery(reference("D2"), SETTINGS)
    truth = particles(30, symmetry="D2", box=48)
    found = gallery.propose(truth.in_band(gallery.band), flat_noise(), rows(30))
    error = angular_error_deg(truth.rotations, found.mode_rotations[:, 0], group_rotations("D2"))
    assert np.median(error) < 10 and (error < 20).mean() > 0.9


def test_the_score_is_the_log_likelihood_of_the_residual() -> None:
    settings = GallerySettings(grid_order=1, coarse_order=1, limit_angstrom=20.0, num_kept=1)
    gallery = ProjectionGallery(reference("D2"), settings)
    images = particles(3, symmetry="D2").in_band(gallery.band)
    noise = flat_noise(variance=1.3, scale=0.9)
    found = gallery.propose(images, noise, rows(3))
    views = gallery._fine
    sign = torch.from_numpy(np.where(views.conjugate, -1.0, 1.0)).float()
    slices = torch.complex(views.real[views.pair], views.imaginary[views.pair] * sign[:, None])
    for k in range(3):
        # of one grid at both levels the shifts that count are the best one and its eight neighbours
        assert gallery.shift_step_angstrom == 5.0
        near = found.shifts_angstrom[k, 0] + np.array([[x, y] for x in (-5, 0, 5) for y in (-5, 0, 5)])
        phases = gallery.band.shift_phases(torch.from_numpy(near))
        unresolved = 0.81 * images.ctf_square[k] * views.shell_power * (1 - views.envelope**2)
        linear = (slices.conj()[:, None] * images.matched[k] * phases).real
        norm = (images.ctf_square[k] * slices.abs().square())[:, None]
        score = ((2 * 0.9 * linear - 0.81 * norm) / (1.3 + unresolved)).sum(2)
        assert found.log_likelihood[k] == pytest.approx(float(score.max()), rel=1e-4)
        marginal = score.logsumexp(1)
        assert found.distribution.indices[k, 0] == views.unit.points[int(marginal.argmax())]
        weight = float(marginal.max() - marginal.logsumexp(0))
        assert found.distribution.log_weights[k, 0] == pytest.approx(weight, abs=1e-3)


@pytest.mark.parametrize(("symmetry", "order", "count"), [("C1", 2, 60), ("D2", 3, 40)])
def test_coarse_to_fine_gives_what_the_whole_fine_grid_gives(symmetry: str, order: int, count: int) -> None:
    template = reference(symmetry, snr=0.5)
    settings = GallerySettings(grid_order=order, limit_angstrom=16.0, keep_fraction=0.05, num_modes=1)
    short, whole = (
        proposed(
            ProjectionGallery(template, settings.model_copy(update={"coarse_order": coarse})), symmetry, 0.5, count
        )
        for coarse in (order - 1, order)
    )
    same = short.distribution.indices[:, 0] == whole.distribution.indices[:, 0]
    assert same.mean() >= 0.9
    equal = np.isclose(short.log_likelihood[same], whole.log_likelihood[same], rtol=1e-3)
    assert equal.mean() >= 0.95
    mass = np.abs(np.exp(short.distribution.log_weights[same, 0]) - np.exp(whole.distribution.log_weights[same, 0]))
    assert np.median(mass) < 0.02
    short_error, whole_error = (np.median(errors_deg(found, symmetry)) for found in (short, whole))
    assert short_error < whole_error + 0.5


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.usefixtures("threads")
def test_a_particles_bits_depend_on_no_other() -> None:
    gallery = ProjectionGallery(reference("D2"), SETTINGS.model_copy(update={"batch_size": 8}))
    together = proposed(gallery, count=20)
    images = particles(20, symmetry="D2").in_band(gallery.band)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for picked in (order[:1], order[5:12], order[3:]):
        alone, part = gallery.propose(images.select(picked), flat_noise(), rows(len(picked))), picked.numpy()
        np.testing.assert_array_equal(alone.distribution.indices, together.distribution.indices[part])
        np.testing.assert_array_equal(alone.distribution.log_weights, together.distribution.log_weights[part])
        np.testing.assert_array_equal(alone.mode_shifts_angstrom, together.mode_shifts_angstrom[part])


def test_small_tiles_of_views_give_the_same_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = ProjectionGallery(reference("C1"), SETTINGS.model_copy(update={"memory_mib": 1}))
    seen = []
    original = torch.Tensor.amax

    def recorded(tensor: torch.Tensor, *args: object) -> torch.Tensor:
        seen.append(tensor.numel() * 4)
        return original(tensor, *args)

    monkeypatch.setattr(torch.Tensor, "amax", recorded)
    small = proposed(gallery, "C1", count=20)
    assert len(seen) > 2 and max(seen) <= 2**20
    monkeypatch.undo()
    large = proposed(ProjectionGallery(reference("C1"), SETTINGS), "C1", count=20)
    np.testing.assert_array_equal(small.distribution.indices[:, 0], large.distribution.indices[:, 0])
    np.testing.assert_allclose(small.log_likelihood, large.log_likelihood, rtol=1e-5)


def test_weights_are_a_posterior_over_all_views() -> None:
    update = {"num_kept": 576, "keep_fraction": 1.0}
    whole = proposed(ProjectionGallery(reference("D2"), SETTINGS.model_copy(update=update)), snr=0.3)
    assert whole.distribution.asymmetric_unit
    total = np.exp(whole.distribution.log_weights.astype(np.float64)).sum(1)
    assert (total <= 1 + 1e-4).all() and np.median(total) > 0.99
    weights = np.exp(whole.distribution.log_weights)  # -inf where a view was not followed
    assert (np.diff(weights, axis=1) <= 0).all()


def test_a_higher_temperature_spreads_the_posterior() -> None:
    cold, warm = (
        proposed(ProjectionGallery(reference("D2"), SETTINGS.model_copy(update={"temperature": t})), snr=0.5)
        for t in (1.0, 8.0)
    )
    spread = warm.distribution.log_weights[:, 0] - cold.distribution.log_weights[:, 0]
    assert (spread <= 1e-4).all() and spread.mean() < -0.2


def test_modes_are_distinct_under_the_group() -> None:
    found = proposed(ProjectionGallery(reference("D2"), SETTINGS), snr=0.05)
    apart = angular_error_deg(found.mode_rotations[:, 0], found.mode_rotations[:, 1], group_rotations("D2"))
    assert apart.min() > 2 * 58.6 / 4 - 1e-6 or (found.mode_weights[apart <= 29.2, 1] == 0).all()


def test_correlation_does_not_see_an_images_scale() -> None:
    settings = SETTINGS.model_copy(update={"score": "correlation"})
    gallery = ProjectionGallery(reference("D2"), settings)
    images = particles(20, symmetry="D2").in_band(gallery.band)
    louder = replace(images, matched=images.matched * 3, power=images.power * 9)
    one, three = (gallery.propose(i, flat_noise(), rows(20)) for i in (images, louder))
    np.testing.assert_allclose(one.log_likelihood, three.log_likelihood, rtol=1e-5)
    assert (one.log_likelihood < 1).all() and one.log_likelihood.mean() > 0.5
    assert np.median(errors_deg(one)) < 10
    likelihood = ProjectionGallery(reference("D2"), SETTINGS)
    one, three = (likelihood.propose(i, flat_noise(), rows(20)) for i in (images, louder))
    assert (three.log_likelihood > 2 * one.log_likelihood).all()


@pytest.mark.parametrize("density", [0.01, 100.0])
def test_correlation_does_not_see_the_maps_scale(density: float) -> None:
    settings, own = SETTINGS.model_copy(update={"score": "correlation"}), reference("D2")
    scaled = replace(own, volume=own.volume * np.float32(density))
    one, other = (proposed(ProjectionGallery(which, settings), count=20) for which in (own, scaled))
    np.testing.assert_array_equal(one.distribution.indices[:, 0], other.distribution.indices[:, 0])
    np.testing.assert_array_equal(one.mode_shifts_angstrom[:, 0], other.mode_shifts_angstrom[:, 0])
    np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, rtol=1e-4)


def test_whitening_by_the_noises_spectrum_beats_a_flat_one() -> None:
    template = reference("C1", snr=0.25)
    gallery = ProjectionGallery(template, SETTINGS)
    truth = particles(100, seed=5)
    images = truth.in_band(gallery.band)
    projector = MapProjector(template.volume, template.pixel_size_angstrom)
    signal = centred_slices(projector, gallery.band, truth.rotations, truth.shifts_angstrom) * images.ctf_square
    spectrum = np.exp(-np.linspace(0, 5, 20)) * 80 + 0.5
    noise = replace(flat_noise(), frequencies_per_angstrom=np.linspace(0, 1 / 16, 20), variance=spectrum[None])
    generator = torch.Generator().manual_seed(2)
    white = torch.view_as_complex(torch.randn(*images.matched.shape, 2, generator=generator) / 2**0.5)
    variance = noise.variance_in(gallery.band)
    noisy = replace(images, matched=signal + white * (variance * images.ctf_square).sqrt())
    errors = [
        angular_error_deg(truth.rotations, gallery.propose(noisy, n, rows(100)).mode_rotations[:, 0], np.eye(3)[None])
        for n in (noise, flat_noise(variance=float(variance.mean())))
    ]
    assert (errors[0] < 20).mean() > (errors[1] < 20).mean() + 0.2


def test_bfloat16_keeps_the_ranking() -> None:
    exact = proposed(ProjectionGallery(reference("D2"), SETTINGS))
    rough = proposed(ProjectionGallery(reference("D2"), SETTINGS.model_copy(update={"precision": "bfloat16"})))
    assert (rough.distribution.indices[:, 0] == exact.distribution.indices[:, 0]).mean() > 0.95


def test_the_limit_is_what_the_coarse_grid_supports_but_never_beyond_the_reference() -> None:
    automatic = GallerySettings(coarse_order=2)
    coarse = ProjectionGallery(reference("D2", resolution=11.0), automatic.model_copy(update={"coarse_order": 1}))
    fine = ProjectionGallery(reference("D2", resolution=11.0), automatic)
    assert coarse.coarse_band.limit_angstrom == pytest.approx(2 * fine.coarse_band.limit_angstrom, rel=0.01)
    assert fine.band.limit_angstrom == 11.0 < fine.coarse_band.limit_angstrom
    assert fine.shift_step_angstrom == 11.0 / 4
    blurred = ProjectionGallery(reference("D2", resolution=30.0), automatic)
    assert blurred.band.limit_angstrom == blurred.coarse_band.limit_angstrom == 30.0
    assert np.hypot(*coarse.coarse_shifts_angstrom.T).max() <= 15.0 + 1e-6


def test_off_centre_particles_are_found_where_the_aligned_rows_had_such() -> None:
    truth = particles(40, symmetry="D2", max_shift=25.0)
    template = reference("D2")
    known = replace(template, shift_prior=fit_shift_prior(truth.shifts_angstrom, 4.0, 40.0))
    far = np.linalg.norm(truth.shifts_angstrom, axis=1) > 20
    errors = []
    for own, update in ((template, {}), (known, {}), (known, {"shift_range_angstrom": 15.0})):
        gallery = ProjectionGallery(own, SETTINGS.model_copy(update=update))
        found = gallery.propose(truth.in_band(gallery.band), flat_noise(), rows(40))
        off = np.linalg.norm(found.mode_shifts_angstrom[:, 0] - truth.shifts_angstrom, axis=1)
        errors.append(np.median(off[far]))
        reach = np.hypot(*gallery.coarse_shifts_angstrom.T).max()
        assert (reach > 25) == (own is known and not update)
    assert errors[1] < 4 < min(errors[0], errors[2])


def test_likely_shifts_win_where_the_image_says_little() -> None:
    truth = particles(100, symmetry="D2", snr=0.02, max_shift=3.0)
    prior = fit_shift_prior(np.concatenate([truth.shifts_angstrom, np.full((5, 2), 30.0)]), 4.0, 45.0)
    template = replace(reference("D2", snr=0.02), shift_prior=prior)
    found = [
        ProjectionGallery(template, SETTINGS.model_copy(update={"shift_prior": weighed})) for weighed in (True, False)
    ]
    near = []
    for gallery in found:
        assert gallery.shift_range_angstrom == prior.range_angstrom
        proposals = gallery.propose(truth.in_band(gallery.band), flat_noise(), rows(100))
        off = np.linalg.norm(proposals.mode_shifts_angstrom[:, 0] - truth.shifts_angstrom, axis=1)
        near.append((off < 8).mean())
    assert near[0] > near[1] + 0.1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="coarse_order"):
        ProjectionGallery(reference(), SETTINGS.model_copy(update={"grid_order": 1, "coarse_order": 2}))
    gallery = ProjectionGallery(reference("D2"), SETTINGS)
    other = replace(gallery.band, limit_angstrom=20.0)
    with pytest.raises(ValueError, match="gallery in"):
        gallery.propose(particles(2).in_band(other), flat_noise(), rows(2))
    with pytest.raises(ValueError, match="no images"):
        gallery.propose(particles(2).in_band(gallery.band).select(slice(0, 0)), flat_noise(), rows(0))


def test_slices_of_the_reference_have_the_power_of_the_signal() -> None:
    images = particles(100, snr=2.0, symmetry="D2")
    gallery = ProjectionGallery(reference("D2"), SETTINGS)
    projector = MapProjector(gallery.reference.volume, gallery.reference.pixel_size_angstrom)
    slices = band_slices(projector, gallery.band, images.rotations)
    found = images.in_band(gallery.band)
    signal = (found.ctf_square * slices.abs().square()).sum(1).mean()
    assert float(found.power.sum(1).mean() - len(gallery.band)) == pytest.approx(float(signal), rel=0.15)
