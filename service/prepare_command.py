"""`cesped-stream entries preprocess`: a preprocessed copy of an entry."""

import argparse
from pathlib import Path
from typing import Any

from cesped_stream.errors import InvalidSettingsError

from .entries_commands import add_root_argument, benchmark_root


def add_preprocess(entries: Any) -> None:
    """Add `preprocess` to the commands of `entries`."""
    parser = entries.add_parser(
        "preprocess",
        help="write a copy of an entry with images normalised, CTF corrected, cut and resized",
        description="Write a copy of an entry in CESPED's layout: images normalised, CTF corrected, cut and resized.\n"
        "Poses and shifts stay; the copy's stars say what its images carry.",
    )
    parser.add_argument("_target", metavar="TARGET", help="an entry's name, or the path of one")
    parser.add_argument(
        "--output", dest="_output", type=Path, required=True, metavar="FOLDER", help="the copy; must not exist"
    )
    parser.add_argument("--image-size", dest="image_size", type=int, metavar="PIXELS", help="default: no resize")
    parser.add_argument(
        "--crop", dest="crop_fraction", type=float, metavar="SHARE", help="share of the side cut away; default: 0.25"
    )
    parser.add_argument("--ctf", dest="ctf_correction", metavar="HOW", help="none, phase_flip (default) or multiply")
    parser.add_argument("--no-normalise", dest="normalise", action="store_false", default=None, help="keep the values")
    parser.add_argument("--half", dest="_half", type=int, choices=(0, 1), help="one half-set only; default: both")
    add_root_argument(parser)
    parser.set_defaults(_command=preprocess_command)


def preprocess_command(arguments: argparse.Namespace) -> int:
    """Write the copy and say what it is."""
    from pydantic import ValidationError
    from rich.console import Console

    from cesped_stream.benchmark.entries import find_entry
    from cesped_stream.benchmark.prepare import PreparationSettings, preprocess_entry

    given = {key: getattr(arguments, key) for key in PreparationSettings.model_fields}
    try:
        settings = PreparationSettings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InvalidSettingsError(f"{problem['loc'][0]}: got {problem['input']!r}: {problem['msg']}") from None
    half_sets = (0, 1) if arguments._half is None else (arguments._half,)
    entry = find_entry(arguments._target, benchmark_root(arguments))
    with Console(stderr=True).status("preprocessing") as shown:
        done = preprocess_entry(
            entry,
            arguments._output,
            settings,
            half_sets=half_sets,
            on_progress=lambda count, total: shown.update(f"preprocessing: {count:,} of {total:,} particles"),
        )
    unusable = f", {done.num_unusable} of them unusable and 0" if done.num_unusable else ""
    size = f"{done.image_size} px at {done.pixel_size_angstrom:.4g} A"
    print(f"{done.folder}: {done.num_particles:,} images of {size}{unusable}")
    return 0
