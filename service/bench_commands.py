"""`cesped-stream bench reconstruct`: its options, and what it does. torch is imported when it runs."""

import argparse
import json
from typing import Any

from rich.console import Console


def add_bench_reconstruct(bench: Any) -> None:
    """Add the benchmark to the `bench` command's parsers."""
    parser = bench.add_parser(
        "reconstruct", help="seconds for a map, beside relion_reconstruct on the same files, and how equal they are"
    )
    parser.add_argument("--particles", dest="_particles", type=int, default=4000, help="in the half-set; default 4000")
    parser.add_argument("--box-size", dest="_box_size", type=int, default=64, help="pixels; default 64")
    parser.add_argument("--symmetry", dest="_symmetry", default="C1", help="RELION's name; default C1")
    parser.add_argument("--device", dest="_device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--repeats", dest="_repeats", type=int, default=3, help="the best of so many; default 3")
    parser.add_argument("--json", dest="_json", action="store_true", help="one JSON object instead of the table")
    parser.set_defaults(_command=bench_reconstruct_command)


def bench_reconstruct_command(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    from cesped_stream.benchmark.bench_reconstruct import bench_reconstruct, figures_table

    with Console(stderr=True).status("simulating and reconstructing"):
        figures = bench_reconstruct(
            arguments._particles,
            arguments._box_size,
            symmetry=arguments._symmetry,
            device=arguments._device,
            repeats=arguments._repeats,
        )
    print(json.dumps(figures.model_dump() | {"ratio": figures.ratio}) if arguments._json else figures_table(figures))
    return 0
