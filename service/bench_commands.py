"""`cesped-stream bench ...`: the benchmarks' options and what they do. torch is imported when one runs."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from cesped_stream.benchmark.bench_settings import DatasetBench, InferBench, PosesBench, ReconstructBench

from .bench_options import add_options, settings_of_bench
from .process import usable_cores

POSES_TEXT = """\
How many particles a second get a pose on this machine, stage by stage, and how far that is from what its disk and its
arithmetic allow. Particles are simulated from the embedded ribosome; no file is needed.

  cesped-stream bench poses                                        the table of docs/performance.md
  cesped-stream bench poses --boxes 320 --symmetries D7            your own box and point group
  cesped-stream bench poses --device cuda --particles 8192         a GPU needs more of them for a steady figure
  cesped-stream bench poses --box-angstrom 192 --boxes 64          a small particle: finer steps, more work

Rates are of wall time; the CPU time beside them counts all threads, and other programs change it little.
read: stack to memory, with each image's digest. band transform: images to Fourier coefficients. gallery: against all
views of the reference. refinement: its best ones to a rotation and a shift. all of these: from the disk to poses, as a
worker with references does it. network: preset small with random weights (its poses are worthless, its rate is not).
The stacks are dropped from the page cache before they are read, and the table says whether that worked; a disk of a
virtual machine may still have a cache beyond it. Files are written to the folder that TMPDIR names.
"""


def add_benches(bench: Any) -> None:
    """Add the benchmarks to the `bench` command's parsers."""
    infer = bench.add_parser(
        "infer", help="particles/s and peak memory of inference: backbone, head, and with reading from disk"
    )
    add_options(infer, InferBench)
    infer.set_defaults(_command=bench_infer_command)
    dataset = bench.add_parser(
        "dataset", help="particles/s of ParticlesDataset: one by one, in a DataLoader, and batched on a device"
    )
    add_options(dataset, DatasetBench)
    dataset.set_defaults(_command=bench_dataset_command)
    reconstruct = bench.add_parser(
        "reconstruct", help="seconds for a map, beside relion_reconstruct on the same files, and how equal they are"
    )
    add_options(reconstruct, ReconstructBench)
    reconstruct.set_defaults(_command=bench_reconstruct_command)
    poses = bench.add_parser(
        "poses",
        help="particles/s of gallery, refinement and network, beside what disk and arithmetic allow",
        description=POSES_TEXT,
    )
    add_options(poses, PosesBench)
    poses.set_defaults(_command=bench_poses_command)


def bench_infer_command(arguments: argparse.Namespace) -> int:
    """Measure inference, and print a table or JSON."""
    settings = settings_of_bench(arguments, InferBench)
    from rich.console import Console

    from cesped_stream.benchmark.bench_infer import bench_infer, figures_table
    from cesped_stream.settings import InferenceSettings

    inference = InferenceSettings(device=settings.device, precision=settings.precision, batch_size=settings.batch_size)
    with Console(stderr=True).status(f"measuring {' and '.join(settings.preset)}"):
        figures = list(bench_infer(settings.preset, inference, settings.particles))
    print(json.dumps([figure.model_dump() for figure in figures]) if arguments._json else figures_table(figures))
    return 0


def bench_dataset_command(arguments: argparse.Namespace) -> int:
    """Measure a data set, and print a table or JSON."""
    settings = settings_of_bench(arguments, DatasetBench)
    from rich.console import Console

    from cesped_stream.benchmark.bench_dataset import bench_dataset, dataset_table

    with Console(stderr=True).status("measuring"):
        figures = list(
            bench_dataset(
                settings.particles,
                box_pixels=settings.box,
                image_pixels=settings.image_size,
                batch_size=settings.batch_size,
                workers=settings.workers,
                device=settings.device,
            )
        )
    print(json.dumps([figure.model_dump() for figure in figures]) if arguments._json else dataset_table(figures))
    return 0


def bench_reconstruct_command(arguments: argparse.Namespace) -> int:
    """Measure a reconstruction, and print a table or JSON."""
    settings = settings_of_bench(arguments, ReconstructBench)
    from rich.console import Console

    from cesped_stream.benchmark.bench_reconstruct import bench_reconstruct, figures_table

    with Console(stderr=True).status("simulating and reconstructing"):
        figures = bench_reconstruct(
            settings.particles,
            settings.box_size,
            symmetry=settings.symmetry,
            device=settings.device,
            repeats=settings.repeats,
        )
    print(json.dumps(figures.model_dump() | {"ratio": figures.ratio}) if arguments._json else figures_table(figures))
    return 0


def bench_poses_command(arguments: argparse.Namespace) -> int:
    """Measure the ways to a pose, and print a table or JSON."""
    settings = settings_of_bench(arguments, PosesBench)
    import torch
    from rich.console import Console

    from cesped_stream.benchmark.bench_limits import measured_limits
    from cesped_stream.benchmark.bench_poses import bench_poses, poses_table

    torch.set_num_threads(settings.threads or usable_cores())
    figures = []
    with (
        Console(stderr=True).status("measuring disk and products") as status,
        tempfile.TemporaryDirectory(prefix="cesped-stream-bench-") as name,
    ):
        limits = measured_limits(Path(name), settings)
        for done in bench_poses(settings, limits, Path(name)):
            figures.append(done)
            status.update(f"{len(figures)} of {len(settings.boxes) * len(settings.symmetries)} done")
    print(json.dumps([figure.model_dump() for figure in figures]) if arguments._json else poses_table(figures))
    return 0
