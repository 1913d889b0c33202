"""`cesped-stream bench dataset`: how fast a data set gives its particles."""

import argparse
import json
from typing import Any


def add_bench_dataset(bench: Any) -> None:
    """Add `dataset` to the benchmarks."""
    parser = bench.add_parser(
        "dataset", help="particles/s of ParticlesDataset: one by one, in a DataLoader, and batched on a device"
    )
    parser.add_argument("--particles", dest="_particles", type=int, default=1024, help="images of the stack")
    parser.add_argument("--box", dest="_box", type=int, default=232, help="their side in pixels")
    parser.add_argument("--image-size", dest="_image_size", type=int, default=256, help="side of the items' images")
    parser.add_argument("--batch-size", dest="_batch_size", type=int, default=64)
    parser.add_argument("--workers", dest="_workers", type=int, default=0, help="also with this many worker processes")
    parser.add_argument("--device", dest="_device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--json", dest="_json", action="store_true", help="one JSON object instead of the table")
    parser.set_defaults(_command=bench_dataset_command)


def bench_dataset_command(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or JSON."""
    from rich.console import Console

    from cesped_stream.benchmark.bench_dataset import bench_dataset, dataset_table

    with Console(stderr=True).status("measuring"):
        figures = list(
            bench_dataset(
                arguments._particles,
                box_pixels=arguments._box,
                image_pixels=arguments._image_size,
                batch_size=arguments._batch_size,
                workers=arguments._workers,
                device=arguments._device,
            )
        )
    if arguments._json:
        print(json.dumps([figure.model_dump() for figure in figures]))
    else:
        print(dataset_table(figures))
    return 0
