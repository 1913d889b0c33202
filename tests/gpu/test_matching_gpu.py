"""Gallery and refinement on the GPU give what the CPU gives."""

import json

import numpy as np
import pytest
import torch
from support.matching import BOX, PIXEL_SIZE, flat_noise, particles, reference, rows

from cesped_stream.gallery.search import ProjectionGallery
from cesped_stream.imaging.band import Band
from cesped_stream.imaging.band_rows import images_in_bands
from cesped_stream.refinement.matching import Refiner
from cesped_stream.settings import GallerySettings, RefinementSettings
from cesped_stream.so3.distance import angular_error_deg
from cesped_stream_service.cli import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_poses_on_the_gpu_are_those_of_the_cpu(precision: str) -> None:
    truth, template = particles(40, symmetry="D2", snr=1.0), reference("D2")
    settings = GallerySettings(grid_order=2, coarse_order=1, keep_fraction=0.2)
    found = []
    for device in ("cpu", "cuda"):
        chosen = settings.model_copy(update={"precision": precision if device == "cuda" else "float32"})
        gallery = ProjectionGallery(template, chosen, device=device)
        refiner = Refiner(
            template,
            RefinementSettings(),
            proposal_step_deg=14.6,
            proposal_shift_step_angstrom=gallery.shift_step_angstrom,
            device=device,
        )
        proposals = gallery.propose(truth.in_band(gallery.band).to(device), flat_noise(), rows(40))
        poses = refiner.refine(
            truth.in_band(refiner.band).to(device),
            flat_noise(),
            rows(40),
            proposals.mode_rotations,
            proposals.mode_shifts_angstrom,
        )
        found.append((proposals, poses))
    (mine, pose), (its, other) = found
    assert (mine.distribution.indices[:, 0] == its.distribution.indices[:, 0]).mean() > 0.95
    assert np.median(angular_error_deg(pose.rotations, other.rotations, np.eye(3)[None])) < 0.05


def test_coefficients_on_the_gpu_are_those_of_the_cpu() -> None:
    truth = particles(9)
    bands = (Band(BOX * PIXEL_SIZE, 24.0), Band(BOX * PIXEL_SIZE, 12.0))
    mine, its = (images_in_bands(truth.images.to(device), truth.ctf, bands) for device in ("cpu", "cuda"))
    for one, other in zip(mine, its, strict=True):
        assert other.matched.device.type == "cuda"
        for name in ("matched", "ctf_square", "power", "information"):
            torch.testing.assert_close(getattr(other, name).cpu(), getattr(one, name), rtol=1e-3, atol=1e-3)


def test_bench_measures_the_gpu_from_disk_to_poses(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench poses --boxes 32 --symmetries D2 --particles 64 --resolution-angstrom 40 --snr 1 --disk-mib 1"
    assert main([*words.split(), "--device", "cuda", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["device"] == torch.cuda.get_device_name()
    stages = ("read", "transform", "gallery", "refinement", "poses", "network", "network_poses")
    assert min(found[stage]["per_second"] for stage in stages) > 0
    assert 0 < found["product_share"] < 1.5
