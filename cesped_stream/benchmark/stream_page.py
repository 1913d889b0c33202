"""The page of a replayed stream: what streamed, what came of it, what to believe of it and what to do next."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cesped_stream.benchmark import html
from cesped_stream.benchmark.beside import Run, contained_words, side_by_side
from cesped_stream.benchmark.evaluation_page import (
    angstrom,
    caveats,
    evaluation_pictures,
    facts_table,
    map_table,
    pose_table,
)
from cesped_stream.benchmark.figure import Timeline
from cesped_stream.benchmark.html import Card
from cesped_stream.benchmark.stream_charts import (
    batch_chart,
    error_chart,
    latency_chart,
    resolution_chart,
    timeline_chart,
)
from cesped_stream.benchmark.stream_report import StreamMeasures
from cesped_stream.benchmark.sureness_page import sureness_section, ways_section

Float64 = NDArray[np.float64]

SVG = "image/svg+xml"
ERROR_PER_SIGMA = 1.9
"""68 % quantile of the angle of turns whose rotation vector is normal, over sigma of each of its components."""
LARGEST_LOCAL_ERROR_DEG = 15.0
"""68 % of the errors must be within this for a local refinement, which searches 3 sigma about each angle."""
USEFUL_SHARE_OF_A_GUESS = 0.4
"""Median errors above this share of a guess's mean error are called hardly better than guessing."""


def stream_page(
    measures: StreamMeasures,
    title: str,
    *,
    timeline: Timeline | None = None,
    latencies_seconds: Sequence[float] = (),
    model_seconds: float | None = None,
    gallery: bytes | None = None,
    beside: Sequence[Run] = (),
) -> str:
    """Return the page of a stream: self-contained HTML.

    `latencies_seconds`: one a streamed particle; `gallery`: figure.png of the replay; `beside`: runs to show in one
    table, this one first. What is None or empty is left out.
    """
    facts = measures.facts
    parts = [
        html.heading(title, first=True),
        *(html.paragraph(str(words), "soft") for words in facts.get("contained", ())),
        html.cards(_cards(measures)),
        html.heading("What to do next"),
        html.bullets(_next_steps(measures)),
        html.heading("What to believe of it"),
        html.bullets(
            [*_counted(measures), *([] if measures.evaluation is None else caveats(measures.evaluation, facts))]
        ),
        *_beside(beside),
        *_along(measures, model_seconds),
        *_speed(measures, timeline, latencies_seconds, model_seconds),
        *_evaluated(measures, title),
        *ways_section(facts.get("pose_ways", {})),
        *sureness_section(measures.sureness),
        html.heading("Some particles, and their views") if gallery else "",
        html.charts([html.picture(gallery, "image/png", "Particles drawn at random.")]) if gallery else "",
        html.heading("How it was made"),
        facts_table([(key.replace("_", " "), _words(value)) for key, value in facts.get("made_by", {}).items()]),
        html.details(
            "Settings of the replay", facts_table([(k, _words(v)) for k, v in facts.get("replay", {}).items()])
        ),
        html.paragraph("Every figure of this page stands in metrics.json beside it.", "soft"),
    ]
    return html.page(title, parts)


def _cards(measures: StreamMeasures) -> list[Card]:
    counts, evaluation = measures.counts, measures.evaluation
    own = measures.facts.get("complete", True)
    absent = counts.streamed - counts.inferred
    lost = (
        Card(f"{counts.lost:,}", "lost", _verdict(counts.lost)) if own else Card(f"{absent:,}", "without a pose here")
    )
    junk = 0 if evaluation is None else evaluation.coverage[2].num_junk_predicted
    picks = f"streamed picks with a predicted pose ({junk:,} of them junk)" if junk else ""
    cards = [Card(f"{counts.inferred:,} of {counts.streamed:,}", picks or "streamed particles with a predicted pose")]
    cards += [lost, Card(f"{counts.doubled:,}", "doubled", _verdict(counts.doubled))]
    if counts.foreign:
        cards.append(Card(f"{counts.foreign:,}", "rows that never landed", "bad"))
    if evaluation is not None and evaluation.poses is not None:
        together = evaluation.poses.together
        cards.append(Card(f"{together.median_deg:.1f}°", "median angular error"))
        cards.append(Card(f"{100 * together.share_within_15_deg:.0f} %", "within 15°"))
    if evaluation is not None and evaluation.maps is not None:
        region = evaluation.maps.unweighted.to_truth.unmasked
        resolution = angstrom(region.resolution_05_angstrom, at_nyquist=region.resolution_05_at_nyquist)
        cards.append(Card(resolution, "map against truth, FSC 0.5 (provisional)"))
        other = evaluation.maps.unweighted.halves_to_other_truth[0]
        if other is not None:
            at_05 = angstrom(other.unmasked.resolution_05_angstrom, at_nyquist=other.unmasked.resolution_05_at_nyquist)
            cards.append(Card(at_05, "half map 0 against the truth's half 1 (no image in both), FSC 0.5"))
    for latency, what in (
        (measures.latency, "latency, median of all"),
        (measures.latency_with_model, "latency, landed once there was a model"),
    ):
        if latency is not None and latency.p50_seconds is not None:
            cards.append(Card(f"{latency.p50_seconds:.1f} s", f"{what} (p95 {latency.p95_seconds:.1f} s)"))
    return cards


def _next_steps(measures: StreamMeasures) -> list[str]:
    counts, evaluation, steps = measures.counts, measures.evaluation, []
    if measures.facts.get("complete", True) and (counts.lost or counts.doubled or counts.foreign):
        steps.append("Do not use these poses: particles are lost, doubled or foreign. Look at the session's logs/.")
    absent = counts.streamed - counts.inferred
    if not measures.facts.get("complete", True) and absent:
        steps.append(
            f"These stars pose {absent:,} of the streamed particles not at all; the figures are of the others."
        )
    if counts.unposed:
        steps.append(f"{counts.unposed:,} images have no pose (NaN, constant, unreadable): see poses_unposed.star.")
    if evaluation is None or evaluation.poses is None:
        return [*steps, "There are no true poses to compare with: only counts and times are told."]
    median, guess = evaluation.poses.together.median_deg, evaluation.poses.random_mean_deg
    if median > USEFUL_SHARE_OF_A_GUESS * guess:
        steps.append(
            f"The median error ({median:.0f}°) is hardly better than a guess ({guess:.0f}° on average): do not start a "
            "local refinement from these poses. Align more particles first; where a network alone answers, train "
            "longer."
        )
    else:
        steps.append(_refinement(evaluation.errors_deg))
    if measures.facts.get("complete", True):
        steps.append("`poses.star` holds every particle once; its image names are relative to `landing/`.")
    if measures.facts.get("made_by", {}).get("training_stopped_by") == "minutes":
        steps.append("Training was cut by its time budget: a larger training.max_minutes may give better poses.")
    steps += _trend(measures)
    return steps


def _refinement(errors_deg: Float64) -> str:
    """Return which refinement the errors `(n,)` allow: a local one finds no pose beyond 3 sigma of where it starts."""
    most = float(np.quantile(errors_deg, 0.68))
    sigma = most / ERROR_PER_SIGMA
    outside = float(np.mean(errors_deg > 3 * sigma))
    if most <= LARGEST_LOCAL_ERROR_DEG:
        return (
            f"68 % of the poses are within {most:.1f}° of the truth: start a local refinement (in RELION with "
            f"`--sigma_ang {sigma:.1f}`, a `--healpix_order` to match and `--ctf_corrected_ref`) rather than a global "
            f"one. {100 * outside:.0f} % of the poses are off by more than the 3 sigma that it searches."
        )
    return (
        f"68 % of the poses are within {most:.1f}° of the truth only (`--sigma_ang` {sigma:.1f}): too wide for a local "
        "refinement. Refine globally, or align more particles first (and train longer, where a network alone answers)."
    )


def _trend(measures: StreamMeasures) -> list[str]:
    if len(measures.errors) < 3:
        return []
    first, last = measures.errors[0].recent_median_deg, measures.errors[-1].recent_median_deg
    if last > 1.3 * first and last - first > 2:
        return [
            f"Errors grew along the stream (median {first:.1f}° at its start, {last:.1f}° at its end): the data drift "
            "away from what was trained on. `cesped-stream retrain` on newer aligned particles, then `reinfer`."
        ]
    return []


def _counted(measures: StreamMeasures) -> list[str]:
    counts, told = measures.counts, measures.aligned_poses
    said = [
        f"Errors and maps are of streamed particles only: the {counts.aligned:,} that landed aligned, with the poses "
        "that the model was trained on, are in none of them."
    ]
    random, junk, jitter = (told.get(word, 0) for word in ("random", "junk", "jitter"))
    if random or junk:
        said.append(
            f"{random + junk:,} of {counts.aligned:,} aligned rows have no true pose: {random:,} particles landed at "
            f"random ones, {junk:,} rows are junk."
        )
    if jitter:
        said.append(f"{jitter:,} of {counts.aligned:,} aligned rows landed some degrees off their true pose.")
    return said


def _beside(runs: Sequence[Run]) -> list[str]:
    if not runs:
        return []
    return [html.heading("Beside other runs"), html.table(*side_by_side(runs)), html.bullets(contained_words(runs))]


def _along(measures: StreamMeasures, model_seconds: float | None) -> list[str]:
    if not measures.errors:
        return []
    evaluation = measures.evaluation
    assert evaluation is not None
    guess = None if evaluation.poses is None else evaluation.poses.random_mean_deg
    truth = None if evaluation.maps is None else evaluation.maps.truth_half_to_half.unmasked
    best = None if truth is None else truth.resolution_05_angstrom
    at_nyquist = truth is not None and truth.resolution_05_at_nyquist
    timed = [False] + ([True] if any(point.seconds is not None for point in measures.errors) else [])
    pictures = []
    for by_seconds in timed:
        against = "time" if by_seconds else "particles seen"
        chart = error_chart(measures.errors, guess, by_seconds=by_seconds)
        pictures.append(html.picture(chart, SVG, f"Angular error against {against}."))
        if measures.maps:
            chart = resolution_chart(measures.maps, best, best_at_nyquist=at_nyquist, by_seconds=by_seconds)
            pictures.append(html.picture(chart, SVG, f"Resolution of the maps so far (FSC) against {against}."))
    seconds = "–" if model_seconds is None else f"{model_seconds:.0f} s"
    note = f"A model was published after {seconds}; batches that landed before waited for it." if model_seconds else ""
    return [html.heading("Along the stream"), html.charts(pictures), html.paragraph(note, "soft")]


def _speed(
    measures: StreamMeasures, timeline: Timeline | None, latencies: Sequence[float], model_seconds: float | None
) -> list[str]:
    pictures = []
    if timeline is not None and len(timeline.seconds):
        pictures.append(html.picture(timeline_chart(timeline), SVG, "Particles landed and posed."))
    known = [seconds for seconds in latencies if np.isfinite(seconds)]
    if known and measures.latency is not None:
        latency = measures.latency
        chart = latency_chart(known, latency.p50_seconds, latency.p95_seconds)
        pictures.append(
            html.picture(chart, SVG, "Latency of each particle: last byte of its batch to its pose on disk.")
        )
    if any(batch.max_seconds is not None for batch in measures.batches):
        pictures.append(html.picture(batch_chart(measures.batches, model_seconds), SVG, "Latency of each batch."))
    with_model = measures.latency_with_model
    waited = model_seconds is not None and with_model is not None and with_model.num_particles == 0
    note = "Every batch landed before there was a model: these latencies are mostly the wait for its training."
    parts = [html.heading("How fast"), html.charts(pictures), html.paragraph(note, "soft") if waited else ""]
    return parts if pictures else []


def _evaluated(measures: StreamMeasures, title: str) -> list[str]:
    evaluation = measures.evaluation
    parts = [html.heading("Poses and maps, all particles")]
    if evaluation is None:
        return [*parts, html.paragraph(measures.why_no_maps, "note")]
    parts.append(pose_table(evaluation))
    if evaluation.maps is None:
        parts.append(html.paragraph(f"No maps: {measures.why_no_maps}.", "note"))
    else:
        parts.append(map_table(evaluation.maps))
    return [*parts, html.charts(evaluation_pictures(evaluation, title))]


def _verdict(count: int) -> str:
    return "bad" if count else "good"


def _words(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, str | int) else "" if value is None else json.dumps(value)
