"""`cesped-stream doctor LANDING`: what a session would take of a landing folder and what it would leave, and why."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .doctor import LandingFindings, StarFinding

MOST_STARS = 40
MOST_EXAMPLES = 3
_OPTIONS = {
    "landing.inputs": ("GLOB", "the stars whose particles are taken"),
    "landing.aligned": ("GLOB", "the aligned stars"),
    "landing.image_root": ("FOLDER", "folder that rlnImageName is relative to"),
    "min_aligned_per_half": ("N", "aligned rows per half-set that references need"),
}


def add_doctor(commands: Any) -> None:
    """Add the command; nothing heavy is imported before it runs."""
    parser = commands.add_parser(
        "doctor",
        help="what a session would take of a landing folder, what it would leave, and why; starts and writes nothing",
        description="Look at every star of a landing folder by the rules of a session: which are inputs, how many\n"
        "rows, aligned or not, half-sets given or not, stacks found, the first problem, and a verdict. Starts and\n"
        "writes nothing. Exit code 0: particles would be taken and none refused; 1 otherwise.",
    )
    parser.add_argument("_landing", type=Path, metavar="LANDING", help="the landing folder, a RELION project for one")
    parser.add_argument(
        "--settings", dest="_settings", type=Path, metavar="FILE", help="TOML file of a session's settings"
    )
    for key, (metavar, text) in _OPTIONS.items():
        parser.add_argument(f"--{key}", dest=f"_doctor_{key}", metavar=metavar, help=f"{text}; as the setting of `run`")
    parser.add_argument(
        "--landing.allowed_roots",
        dest="_doctor_landing.allowed_roots",
        action="append",
        metavar="FOLDER",
        help="folder that stacks may lie under; repeatable; as the setting of `run`",
    )
    parser.add_argument("--all", dest="_all", action="store_true", help=f"every star, not {MOST_STARS} of a kind")
    parser.add_argument("--json", dest="_json", action="store_true", help="everything as JSON")
    parser.set_defaults(_command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from cesped_stream.errors import CespedStreamError

    from .doctor import examine_landing
    from .resolve import resolve, with_absolute_paths
    from .settings import SessionSettings

    given: dict[str, Any] = {"session": arguments._landing / "session", "landing": {"folder": arguments._landing}}
    for key in (*_OPTIONS, "landing.allowed_roots"):
        value = getattr(arguments, f"_doctor_{key}")
        group, _, name = key.rpartition(".")
        if value is not None:
            (given[group] if group else given)[name] = value
    settings = with_absolute_paths(resolve(SessionSettings, given, arguments._settings))
    if not settings.landing.folder.is_dir():
        raise CespedStreamError(f"{settings.landing.folder}: is no folder; name the landing folder, or mount it")
    console = Console(stderr=True)
    with console.status("looking") as shown:
        findings = examine_landing(
            settings.landing,
            min_aligned_per_half=settings.min_aligned_per_half,
            on_star=lambda many: shown.update(f"{many:,} stars"),
        )
    if arguments._json:
        print(json.dumps(asdict(findings), indent=1))
    else:
        for line in finding_lines(findings, most=None if arguments._all else MOST_STARS):
            Console().print(line, soft_wrap=True, highlight=False, markup=False)
    return 0 if findings.is_well else 1


def finding_lines(findings: "LandingFindings", *, most: int | None = MOST_STARS) -> list[str]:
    """Return what the command prints: inputs, refused stars, what is left, warnings, verdict."""
    from .doctor import StarVerdict

    lines = []
    for title, verdicts in (("taken", (StarVerdict.TAKEN, StarVerdict.PARTLY)), ("refused", (StarVerdict.REFUSED,))):
        stars = findings.of(*verdicts)
        if stars:
            lines.append(f"{title}: {len(stars):,} stars, {sum(star.rows for star in stars):,} rows")
            lines += [f"  {_star_words(star, findings.folder)}" for star in stars[:most]]
            lines += [f"  and {len(stars) - most:,} more; --all lists them"] if most and len(stars) > most else []
    if findings.left:
        lines.append(f"left: {sum(findings.left.values()):,} stars")
        for why, many in findings.left.most_common():
            such = [_below(star.path, findings.folder) for star in findings.of(StarVerdict.LEFT) if star.why == why]
            examples = ", ".join(such[: MOST_EXAMPLES if most else None])
            lines.append(f"  {many:,} {why}: {examples}{', ...' if most and many > MOST_EXAMPLES else ''}")
    lines += [f"! {warning}" for warning in findings.warnings[:most]]
    return [*lines, findings.verdict]


def _star_words(star: "StarFinding", folder: str) -> str:
    words = [f"{_below(star.path, folder)}: {star.rows:,} rows"]
    if star.rows:
        words.append(f"{star.aligned:,} aligned" if star.aligned else "not aligned")
        halves = f"half-sets {star.half_sets[0]:,} + {star.half_sets[1]:,}"
        words.append(halves if star.halves_given else "half-sets not given")
        words.append(f"{star.stacks_found:,} of {star.stacks:,} stacks found")
    if star.boxes:
        words.append("/".join(map(str, star.boxes)) + " px")
    if star.refused:
        words.append(f"{star.refused:,} rows refused")
    if star.waiting:
        words.append(f"{star.waiting:,} rows wait")
    return ", ".join(words) + (f"; {star.why}" if star.why else "")


def _below(path: str, folder: str) -> str:
    return path.removeprefix(f"{folder.rstrip('/')}/")
