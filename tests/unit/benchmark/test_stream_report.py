"""A stream is measured on what streamed: given poses are in no error and no map, and any tool's names are found."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.scored import small_entry, turned

from cesped_stream.benchmark.beside import Run
from cesped_stream.benchmark.compare import Counts, compare
from cesped_stream.benchmark.entries import open_entry
from cesped_stream.benchmark.evaluation_report import evaluation_report
from cesped_stream.benchmark.plan import ROLE_LABEL, plan_replay
from cesped_stream.benchmark.predictions import PredictionType
from cesped_stream.benchmark.replay import LOG_NAME, TRUTH_NAME, replay
from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.benchmark.stream_page import stream_page
from cesped_stream.benchmark.stream_realism import TRUE_LABEL
from cesped_stream.benchmark.stream_report import StreamMeasures, measure_stream, with_landed_names
from cesped_stream.benchmark.stream_times import stream_times
from cesped_stream.particles.stacks import parse_image_name
from cesped_stream.particles.star import read_star
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reconstruction.engine import BuiltinEngine
from cesped_stream_service.scoring import counts_of

SETTINGS = ReplaySettings(first_aligned_micrographs=1, batch_rows=20)
FACTS = {
    "entry": "toy",
    "contained": ["Blobs & <such>."],
    "complete": True,
    "half_words": "cross half (CESPED's protocol), not gold standard",
    "alignment_limit_angstrom": 19.2,
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replay of 120 blobs, 20 of them aligned."""
    folder = tmp_path_factory.mktemp("stream")
    entry = open_entry(small_entry(folder / "toy"))
    replay(plan_replay(entry, SETTINGS), folder / "landing", folder / "truth", SETTINGS)
    return folder


@pytest.fixture(scope="module")
def truth(output: Path) -> ParticleTable:
    return read_star(output / "truth" / TRUTH_NAME)


def posed(truth: ParticleTable, degrees: float = 5.0) -> ParticleTable:
    """Poses as a session exports them: given ones as they were, the others off by so much."""
    roles = np.array(truth.column(ROLE_LABEL))
    table = turned(truth.without([ROLE_LABEL]), np.where(roles == "streamed", degrees, 0.0))
    status = np.where(roles == "streamed", "predicted", "given").tolist()
    confidence = np.linspace(0.1, 0.9, len(truth))
    return table.with_columns({"cestreamStatus": status, "cestreamConfidence": [f"{c:.6f}" for c in confidence]})


def measured(output: Path, truth: ParticleTable, predicted: ParticleTable, **changes: object) -> StreamMeasures:
    committed = {parse_image_name(name): 0.0 for name in truth.column("rlnImageName")}
    log = output / "truth" / LOG_NAME
    began = json.loads(log.read_text().splitlines()[0])
    begun = began["monotonic_seconds"] - began["seconds"]
    committed = {key: begun + 100.0 + k for k, key in enumerate(committed)}
    arguments: dict[str, object] = {
        "landing": output / "landing",
        "engine": BuiltinEngine(),
        "times": stream_times(log, truth, committed),
        "model_seconds": 0.0,
        "points": 3,
        "facts": FACTS,
    }
    counts = compare([predicted], truth, "C1").counts
    return measure_stream(predicted, truth, counts, "C1", **(arguments | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measures(output: Path, truth: ParticleTable) -> StreamMeasures:
    return measured(output, truth, posed(truth))


def test_only_streamed_particles_are_measured(measures: StreamMeasures) -> None:
    evaluation = measures.evaluation
    assert evaluation is not None
    assert evaluation.maps is not None
    assert (measures.counts.streamed, len(evaluation.errors_deg)) == (100, 100)
    assert evaluation.errors_deg == pytest.approx(np.full(100, 5.0), abs=1e-4)
    assert sum(evaluation.maps.truth.num_particles) == 100
    assert [point.seen for point in measures.errors] == [point.seen for point in measures.maps] == [34, 67, 100]
    assert measures.maps[-1].to_truth_05_angstrom == pytest.approx(
        evaluation.maps.unweighted.to_truth.unmasked.resolution_05_angstrom, rel=1e-3
    )


def test_latency_is_told_of_every_streamed_particle(measures: StreamMeasures) -> None:
    assert measures.latency is not None
    assert measures.latency.num_particles == 100
    assert measures.latency == measures.latency_with_model
    assert [batch.num_particles for batch in measures.batches] == [20] * 5
    assert measures.latency.p50_seconds is not None
    assert 150 < measures.latency.p50_seconds < 170


def test_views_without_psi_are_measured_and_counted(output: Path, truth: ParticleTable) -> None:
    views = posed(truth).without(["rlnAnglePsi"])
    result = measured(output, truth, views, engine=None, prediction_type=PredictionType.S2)
    assert result.evaluation is not None
    assert len(result.evaluation.errors_deg) == 100
    counts = counts_of(views, truth, "C1", PredictionType.S2)
    assert (counts.inferred, counts.unposed) == (100, 0)


def test_a_pickers_score_weighs_nothing_in_a_stream(output: Path, truth: ParticleTable) -> None:
    picker = posed(truth).without(["cestreamConfidence"])
    for merit in ("0.5", "-1.5"):
        scored = picker.with_columns({"rlnParticleFigureOfMerit": [merit] * len(picker)})
        result = measured(output, truth, scored, engine=None).evaluation
        assert result is not None
        assert result.confidence is None
        assert "cestreamConfidence" in result.why_no_confidence


def test_shifts_that_were_not_predicted_have_no_error(output: Path, truth: ParticleTable) -> None:
    for kind, predicted in ((PredictionType.SO3, False), (PredictionType.SO3xR2, True)):
        evaluation = measured(output, truth, posed(truth), engine=None, prediction_type=kind).evaluation
        assert evaluation is not None
        told = evaluation.to_json()["shifts"]
        assert told["predicted"] is predicted
        assert (told["together_angstrom"] is not None) is predicted


@pytest.mark.parametrize(("wrong", "told"), [(29, False), (30, True)])
def test_a_ranking_of_few_poses_is_not_told(output: Path, truth: ParticleTable, wrong: int, told: bool) -> None:
    predicted = posed(truth)
    streamed = np.flatnonzero(np.array(truth.column(ROLE_LABEL)) == "streamed")[:wrong]
    degrees = np.where(np.isin(np.arange(len(truth)), streamed), 90.0, 5.0)
    table = turned(truth.without([ROLE_LABEL]), degrees)
    columns = {label: predicted.column(label) for label in ("cestreamStatus", "cestreamConfidence")}
    evaluation = measured(output, truth, table.with_columns(columns), engine=None).evaluation
    assert evaluation is not None
    console = Console(width=100)
    with console.capture() as captured:
        console.print(evaluation_report(evaluation, "t"))
    assert ("It ranks a pose within 15°" in captured.get()) is told


def test_the_half_map_curve_takes_no_shift_of_the_truth(output: Path, truth: ParticleTable) -> None:
    exact = posed(truth, 0.0)
    off = {f"rlnOrigin{axis}Angst": [f"{40.0 * (-1) ** k:.1f}" for k in range(len(truth))] for axis in "XY"}
    right, wrong = (measured(output, truth, table).maps[-1] for table in (exact, exact.with_columns(off)))
    assert right.to_truth_05_angstrom == wrong.to_truth_05_angstrom
    assert right.half_to_half_0143_angstrom is not None
    assert wrong.half_to_half_0143_angstrom is None or (
        wrong.half_to_half_0143_angstrom > right.half_to_half_0143_angstrom
    )


@pytest.mark.parametrize("folder", ["landing/", "Extract/job007/", "J12/imported/001234567890123456789_"])
def test_names_of_other_tools_are_found(truth: ParticleTable, folder: str) -> None:
    names = truth.column("rlnImageName")
    other = truth.with_columns({"rlnImageName": [name.replace("@", f"@{folder}") for name in names]})
    assert with_landed_names(other, truth).column("rlnImageName") == names


def test_a_foreign_name_stays_what_it_is_and_is_counted(output: Path, truth: ParticleTable) -> None:
    predicted = posed(truth).select(range(60, 120))
    names = predicted.column("rlnImageName")
    predicted = predicted.with_columns({"rlnImageName": ["000001@elsewhere.mrcs", names[2], *names[2:]]})
    found = measured(output, truth, with_landed_names(predicted, truth), engine=None)
    assert (found.counts.foreign, found.counts.doubled, found.counts.inferred) == (1, 1, 58)
    assert found.evaluation is not None
    assert len(found.evaluation.errors_deg) == 58
    assert found.why_no_maps == "maps were not asked for"


def test_without_the_landed_stacks_poses_are_compared_and_the_page_says_why(
    output: Path, truth: ParticleTable, tmp_path: Path
) -> None:
    found = measured(output, truth, posed(truth), landing=tmp_path)
    assert found.evaluation is not None
    assert found.evaluation.maps is None
    assert found.maps == []
    assert "that landed are gone" in stream_page(found, "t")


def test_a_truth_without_poses_gives_counts_and_no_figures(output: Path, truth: ParticleTable) -> None:
    bare = truth.without(["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"])
    found = measured(output, bare, posed(truth), engine=None)
    assert found.evaluation is None
    assert found.counts.inferred == 100
    assert "There are no true poses to compare with" in stream_page(found, "t")


def test_the_page_says_how_many_aligned_rows_have_no_true_pose(output: Path, truth: ParticleTable) -> None:
    words = ["random", "junk", "jitter", *["true"] * 17, *["none"] * 100]
    assert truth.column(ROLE_LABEL)[:21] == ["aligned"] * 20 + ["streamed"]
    found = measured(output, truth.with_columns({TRUE_LABEL: words}), posed(truth), engine=None)
    assert found.to_json()["aligned_poses"] == {"jitter": 1, "junk": 1, "random": 1, "true": 17}
    page = stream_page(found, "t")
    assert "2 of 20 aligned rows have no true pose: 1 particles landed at random ones, 1 rows are junk." in page
    assert "1 of 20 aligned rows landed some degrees off" in page
    assert "aligned rows have no true pose" not in stream_page(measured(output, truth, posed(truth), engine=None), "t")


def test_a_tools_own_shifts_are_used_where_it_predicts_them(output: Path, truth: ParticleTable) -> None:
    moved = posed(truth).with_columns({"rlnOriginXAngst": [f"{x + 3:.6f}" for x in truth.numbers("rlnOriginXAngst")]})
    found = measured(output, truth, moved, prediction_type=PredictionType.SO3xR2, engine=None)
    assert found.evaluation is not None
    assert found.evaluation.shifts is not None
    assert found.evaluation.shifts.together_angstrom == pytest.approx(3.0, abs=1e-3)


class _Sources(HTMLParser):
    """What a page would load or link to, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> _Sources:
    sources = _Sources()
    sources.feed(page)
    return sources


@pytest.fixture(scope="module")
def page(measures: StreamMeasures) -> str:
    return stream_page(measures, "A & B", latencies_seconds=[1.0, 2.0, float("nan")])


def test_the_page_carries_everything_in_itself(page: str) -> None:
    found = read(page)
    assert len(found.sources) >= 7
    assert all(source.startswith("data:image/") for source in found.sources)
    assert not found.tags & {"script", "link", "iframe", "object"}
    assert "Blobs & <such>." in found.text
    assert "A & B" in found.text


def test_the_page_calls_maps_provisional_and_nothing_gold_standard_that_is_not(page: str) -> None:
    text = read(page).text
    assert "These maps are provisional. Alignment limit: 19.2 Å" in text
    assert text.count("gold standard") == text.count("not gold standard") == 1
    assert "the 20 that landed aligned" in text


def test_lost_particles_are_the_first_thing_to_act_on(output: Path, truth: ParticleTable) -> None:
    found = measured(output, truth, posed(truth).select(range(110)), engine=None)
    assert found.counts == Counts(120, 20, 100, 90, 0, 10, 0, 0)
    text = read(stream_page(found, "t")).text
    assert "Do not use these poses" in text
    whole = measured(output, truth, posed(truth), engine=None)
    assert "Do not use these poses" not in read(stream_page(whole, "t")).text


@pytest.mark.parametrize(
    ("degrees", "advice"),
    [
        (5.0, "--sigma_ang 2.6"),
        (25.0, "too wide for a local refinement. Refine globally"),
        (120.0, "do not start a"),
    ],
)
def test_what_to_do_next_follows_from_the_errors(
    output: Path, truth: ParticleTable, degrees: float, advice: str
) -> None:
    assert advice in read(stream_page(measured(output, truth, posed(truth, degrees), engine=None), "t")).text


def test_the_figures_are_json_without_nan(measures: StreamMeasures) -> None:
    text = json.dumps(measures.to_json(), allow_nan=False)
    assert json.loads(text)["counts"]["lost"] == 0


def test_the_page_shows_other_runs_beside_this_one(measures: StreamMeasures) -> None:
    metrics = {"cesped_stream": {"poses": {"together": {"median_deg": 41.26}}, "stream": {"contained": ["Junk."]}}}
    text = stream_page(measures, "A stream", beside=(Run("session", metrics),))
    assert "Beside other runs" in text
    assert "41.3°" in text
    assert "session: Junk." in text
    assert "Beside other runs" not in stream_page(measures, "A stream")
