"""The page of an evaluation without a stream: who posed the particles, how well, and what may be believed of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from cesped_stream.benchmark import html
from cesped_stream.benchmark.evaluation_page import (
    angstrom,
    caveats,
    evaluation_pictures,
    facts_table,
    map_table,
    pose_table,
)
from cesped_stream.benchmark.evaluation_result import Evaluation
from cesped_stream.benchmark.html import Card


def protocol_page(
    evaluation: Evaluation,
    title: str,
    facts: Mapping[str, Any],
    made_by: Sequence[tuple[str, str]],
    warnings: Sequence[str] = (),
) -> str:
    """Return the page: self-contained HTML. `facts` as `caveats` takes them; `made_by` (what, figure) in order."""
    together = evaluation.coverage[2]
    cards = [Card(f"{together.num_predicted:,} of {together.num_particles:,}", "particles with a predicted pose")]
    if evaluation.poses is not None:
        errors = evaluation.poses.together
        cards += [
            Card(f"{errors.mean_deg:.1f}°", "mean angular error"),
            Card(f"{errors.median_deg:.1f}°", "median angular error"),
            Card(f"{evaluation.poses.random_mean_deg:.1f}°", "mean of a guess"),
        ]
    if evaluation.maps is not None:
        region = evaluation.maps.unweighted.to_truth.unmasked
        resolution = angstrom(region.resolution_05_angstrom, at_nyquist=region.resolution_05_at_nyquist)
        cards.append(Card(resolution, "map against truth, FSC 0.5"))
        other = evaluation.maps.unweighted.halves_to_other_truth[0]
        if other is not None:
            at_05 = angstrom(other.unmasked.resolution_05_angstrom, at_nyquist=other.unmasked.resolution_05_at_nyquist)
            cards.append(Card(at_05, "half map 0 against the truth's half 1 (no image in both), FSC 0.5"))
    return html.page(
        title,
        [
            html.heading(title, first=True),
            html.cards(cards),
            *(html.paragraph(warning, "note") for warning in warnings),
            html.heading("Poses"),
            pose_table(evaluation),
            html.heading("Maps") if evaluation.maps is not None else "",
            map_table(evaluation.maps) if evaluation.maps is not None else "",
            html.charts(evaluation_pictures(evaluation, title)),
            html.heading("What to believe of it"),
            html.bullets(caveats(evaluation, facts)),
            html.heading("How it was made"),
            facts_table(made_by),
            html.paragraph("Every figure of this page stands in metrics.json beside it.", "soft"),
        ],
    )
