"""Whether the stack that a row names may be opened and holds the row's image, complete and unchanging."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from cesped_stream.errors import CespedStreamError, PermanentError, TransientError
from cesped_stream.particles.image_names import names_no_image
from cesped_stream.particles.landing import StackState, stack_is_complete
from cesped_stream.particles.stack_paths import resolve_stack
from cesped_stream.particles.stacks import check_names_of_one_stack, parse_image_name, read_header

from .accepting import Identity, Part, ReadyRows
from .settings import LandingSettings
from .watcher import LandedStar


class SettledStacks(Protocol):
    """Says whether a stack has stopped changing."""

    def stack_is_settled(self, stack: Path, now: float) -> bool: ...


@dataclass
class Verdict:
    """Places within a part: those whose image is complete, those that wait and those that are refused, with why."""

    identities: dict[int, Identity] = field(default_factory=dict)
    box_sizes: dict[int, int] = field(default_factory=dict)
    waiting: list[tuple[int, str]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)

    def ready(self, part: Part) -> ReadyRows | None:
        places = sorted(self.identities)
        if not places:
            return None
        ready = part.select(places)
        if any(group.text("rlnImageSize") is None for group in ready.table.optics):
            ready = replace(ready, table=ready.table.with_image_sizes([self.box_sizes[k] for k in places]))
        return ReadyRows(ready, tuple(self.identities[k] for k in places))


class StackCheck:
    """Resolves image names under the allowed roots and looks at each stack once per part."""

    def __init__(self, settings: LandingSettings, watcher: SettledStacks) -> None:
        self._image_root = settings.image_root
        roots = settings.allowed_roots or (settings.folder, *([settings.image_root] if settings.image_root else []))
        self._roots = tuple(Path(os.path.abspath(root)) for root in roots)
        self._watcher = watcher

    def judge(self, part: Part, star: LandedStar, now: float) -> Verdict:
        """Sort the rows of a part. Nothing outside the allowed roots is opened."""
        verdict = Verdict()
        by_name: dict[str, list[tuple[int, int]]] = {}
        images = part.table.column("rlnImageName")
        for place, image in enumerate(images):
            try:
                index, name = parse_image_name(image)
            except CespedStreamError as error:
                verdict.refused.append((place, str(error)))
                continue
            by_name.setdefault(name, []).append((place, index))
        for name, rows in by_name.items():
            try:
                stack = resolve_stack(name, star=star.path, image_root=self._image_root, allowed_roots=self._roots)
            except TransientError as error:
                verdict.waiting.extend((place, str(error)) for place, _ in rows)
            except PermanentError as error:
                verdict.refused.extend((place, str(error)) for place, _ in rows)
            else:
                self._judge_stack(stack, rows, star, now, verdict)
                self._refuse_names_of_no_image(stack, [(place, images[place]) for place, _ in rows], verdict)
        self._refuse_other_boxes(part, verdict)
        return verdict

    def _judge_stack(
        self, stack: Path, rows: list[tuple[int, int]], star: LandedStar, now: float, verdict: Verdict
    ) -> None:
        if not (self._watcher.stack_is_settled(stack, now) or star.done):
            verdict.waiting.extend((place, f"{stack}: still changing") for place, _ in rows)
            return
        completeness = stack_is_complete(stack, max(index for _, index in rows) + 1)
        reason = completeness.reason
        if completeness.state is StackState.INVALID:
            verdict.refused.extend((place, reason) for place, _ in rows)
            return
        num_complete = self._num_complete(stack) if reason else max(index for _, index in rows) + 1
        box_size = read_header(stack).box_size if num_complete else 0
        for place, index in rows:
            if index < num_complete:
                verdict.identities[place] = (str(stack), index)
                verdict.box_sizes[place] = box_size
            else:
                verdict.waiting.append((place, reason))

    def _refuse_names_of_no_image(self, stack: Path, names: list[tuple[int, str]], verdict: Verdict) -> None:
        """Refuse rows that name a stack of several images and none of them."""
        unindexed = [(place, name) for place, name in names if names_no_image(name) and place in verdict.identities]
        if not unindexed:
            return
        try:
            check_names_of_one_stack(stack, read_header(stack).num_images, [unindexed[0][1]])
        except PermanentError as error:
            for place, _ in unindexed:
                del verdict.identities[place], verdict.box_sizes[place]
                verdict.refused.append((place, str(error)))

    def _refuse_other_boxes(self, part: Part, verdict: Verdict) -> None:
        """Refuse rows whose optics group names another box than their stack has: RELION takes the box from there."""
        for place, box_size in verdict.box_sizes.items():
            group = part.table.optics[part.table.optics_index[place]]
            named = group.number("rlnImageSize", box_size)
            if named != box_size:
                stack, _ = verdict.identities.pop(place)
                reason = f"{stack}: box of {box_size} pixels, optics group {group.name!r} has rlnImageSize {named:g}; "
                verdict.refused.append((place, reason + "correct data_optics"))

    def _num_complete(self, stack: Path) -> int:
        """Return how many images a settled stack holds completely; 0 where its end is torn or it cannot be read."""
        try:
            num_images = read_header(stack).num_images
        except CespedStreamError:
            return 0
        return num_images if stack_is_complete(stack, num_images).state is StackState.COMPLETE else 0
