"""What a replay adds to an entry's rows: chosen views, junk, bad labels, a new optics group. Images: stream_images."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cesped_stream.benchmark.replay_settings import ReplaySettings
from cesped_stream.benchmark.stream_images import ImageEdits
from cesped_stream.conventions import ANGLE_LABELS, rotation_to_euler_deg
from cesped_stream.errors import InvalidSettingsError
from cesped_stream.imaging.junk import KIND_LABEL, PARTICLE, REALISM_NAME, is_particle
from cesped_stream.particles.table import OpticsGroup, ParticleTable
from cesped_stream.settings import LABEL_SETTINGS, REPLAY_ONLY, SIMULATE_ONLY, RealismSettings
from cesped_stream.so3.symmetry import group_rotations

TRUE_LABEL = "cestreamLabel"
"""Truth column: `true`, `random` or `jitter`, how an aligned row's pose was told; `none` for streamed rows."""
TRUTH_ONLY = (KIND_LABEL, TRUE_LABEL)
"""Columns that never land."""

_NEW_OPTICS_SUFFIX = "_later"
_CONE_NSIDE = 4
_KEPT = LABEL_SETTINGS | {"preset", "seed"}

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


_NO_NOISE = "no noise is added that it could shape; give realism.added_noise, or realism.snr_end_over_start below 1"


def for_simulation(realism: RealismSettings) -> RealismSettings:
    """Return what a simulation takes of `realism`; InvalidSettingsError where only a replay can do what is asked."""
    _refuse(realism, REPLAY_ONLY, "is what a replay does; give it to `replay`")
    return realism.without(REPLAY_ONLY)


def for_demo(realism: RealismSettings) -> tuple[RealismSettings, RealismSettings]:
    """Return what a simulation and the replay of its entry take of `realism`, so that each item is added once.

    InvalidSettingsError for added noise: a simulated entry has the noise that its SNR says.
    """
    _refuse(realism, frozenset({"added_noise"}), "is for recorded images; give simulate.snr")
    return realism.without(REPLAY_ONLY), labels_only(realism)


def labels_only(realism: RealismSettings) -> RealismSettings:
    """Return what is left to a replay of an entry whose images contain the rest already."""
    return realism.without(frozenset(RealismSettings.model_fields) - _KEPT)


def for_replay(realism: RealismSettings, entry_folder: Path) -> RealismSettings:
    """Return what a replay of an entry takes of `realism`: only labels where the entry was simulated as a session.

    InvalidSettingsError where a setting that was given (not the preset's) cannot be done to recorded images, or was
    done to them already.
    """
    _refuse(realism, SIMULATE_ONLY, "cannot be done to recorded images; give it to `simulate`")
    file = entry_folder / REALISM_NAME
    if not file.is_file():
        if not (realism.added_noise > 0 or realism.snr_end_over_start < 1):
            _refuse(realism, frozenset({"noise_exponent"}), _NO_NOISE)
        return realism.without(SIMULATE_ONLY)
    done = json.loads(file.read_text())["settings"]
    images = frozenset(RealismSettings.model_fields) - _KEPT
    _refuse(realism, images, f"{entry_folder} was simulated with realism (preset {done['preset']}); leave it out")
    return labels_only(realism)


def in_session_order(settings: ReplaySettings, entry_folder: Path) -> ReplaySettings:
    """Return a replay's settings with the recorded order where the entry was simulated with a drift along it.

    A shuffled order would scatter the drift over the stream. An order that was asked for stays.
    """
    file = entry_folder / REALISM_NAME
    if "order" in settings.model_fields_set or not file.is_file():
        return settings
    done = RealismSettings.model_validate(json.loads(file.read_text())["settings"])
    return settings.model_copy(update={"order": "recorded"}) if done.drifts else settings


def _refuse(realism: RealismSettings, names: frozenset[str], why: str) -> None:
    fields = RealismSettings.model_fields
    wrong = [
        name for name in realism.beyond_preset() if name in names and getattr(realism, name) != fields[name].default
    ]
    if wrong:
        raise InvalidSettingsError(f"realism.{', realism.'.join(wrong)}: {why}")


@dataclass(frozen=True)
class Dressed:
    """A stream's rows, with everything that realism does to them."""

    source: ParticleTable
    """The truth."""
    told: ParticleTable
    """The same rows as the stream tells them: bad labels in the aligned ones."""
    images: ImageEdits | None
    """None: they land as they are."""
    facts: dict[str, object]
    """What was done to the rows that land, in numbers: for `realism.json` beside the truth."""


@dataclass(frozen=True)
class StreamRealism:
    """Realism for a replay of an entry of point group `symmetry`."""

    realism: RealismSettings
    symmetry: str

    def chosen(self, table: ParticleTable) -> ParticleTable:
        """Return the particles of preferred views, where asked, and junk among them, each row's kind in `cestreamKind`.

        A junk row is its host's, with a random pose and a low confidence (where the entry states confidences); its
        image will be made of its host's noise. InvalidSettingsError where views are to be chosen and a row has none.
        """
        if self.realism.preferred_fraction:
            table = table.select(self._preferred_rows(table))
        return self._with_junk(table) if self.realism.junk_fraction else table

    def dressed(self, table: ParticleTable, aligned: Int64, order: Int64, boxes: Int64) -> Dressed:
        """Return the rows of `chosen` once it is known which land `aligned` and in which `order` all land.

        `boxes` `(n,)` are the box sizes of the rows' images.
        """
        time = np.zeros(len(table))
        time[order] = np.arange(len(order)) / max(1, len(order) - 1)
        if self.realism.new_optics_at:
            table = self._with_new_optics(table, np.flatnonzero(time >= self.realism.new_optics_at))
        moves = self._moves(table)
        table = _moved(table, moves)
        source, told = self._labelled(table, aligned)
        edits = ImageEdits(self.realism, source, moves, time)
        facts = {
            "settings": self.realism.model_dump(mode="json"),
            "kinds": _counts(source, KIND_LABEL, order),
            "labels": _counts(source, TRUE_LABEL, aligned),
            "moved": int(moves[order].any(1).sum()),
            "clipped": int(edits.clipped(boxes)[order].sum()),
        }
        return Dressed(source, told, edits if edits.any else None, facts)

    def _generator(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([*b"replay", *purpose.encode(), self.realism.seed])

    def _preferred_rows(self, table: ParticleTable) -> Int64:
        if not table.has_poses().all():
            raise InvalidSettingsError("realism.preferred_fraction: some rows of the entry have no angles to choose by")
        inside = self._inside_cones(table.rotations())
        share = self.realism.preferred_fraction
        generator = self._generator("views")
        within, outside = (generator.permutation(np.flatnonzero(flags)) for flags in (inside, ~inside))
        if share < 1:
            outside = outside[: round(len(within) * (1 - share) / share)]
            within = within[: round(len(outside) * share / (1 - share))]
        else:
            outside = outside[:0]
        return np.sort(np.concatenate([within, outside]))

    def _inside_cones(self, rotations: Float64) -> NDArray[np.bool_]:
        """Flags `(n,)`: the view, or a mate of it, lies in one of the cones that hold most views."""
        import healpy  # with it comes matplotlib, which a command's help need not wait for

        views = np.einsum("gij,nj->ngi", group_rotations(self.symmetry), rotations[:, :, 2])
        axes = np.stack(healpy.pix2vec(_CONE_NSIDE, np.arange(12 * _CONE_NSIDE**2)), -1)
        bound = np.cos(np.deg2rad(self.realism.preferred_cone_deg))
        covers = np.stack([(views @ axis).max(1) >= bound for axis in axes])
        inside = np.zeros(len(rotations), np.bool_)
        for _ in range(self.realism.preferred_cones):
            inside |= covers[int((covers & ~inside).sum(1).argmax())]
        return inside

    def _with_junk(self, table: ParticleTable) -> ParticleTable:
        generator = self._generator("junk")
        fraction, kinds = self.realism.junk_fraction, self.realism.junk_kinds
        count = round(len(table) * fraction / (1 - fraction))
        hosts = np.sort(generator.permutation(len(table))[:count])
        order = np.argsort(np.concatenate([np.arange(len(table)), hosts + 0.5]), kind="stable")
        junk = np.concatenate([np.zeros(len(table), np.bool_), np.ones(count, np.bool_)])[order]
        whole = table.select(np.concatenate([np.arange(len(table)), hosts])[order])
        named = np.full(len(whole), PARTICLE, object)
        named[junk] = [kinds[k % len(kinds)] for k in generator.permutation(count)]
        rows = np.flatnonzero(junk)
        if whole.has_poses().all():
            whole = _with_rotations(whole, rows, _random(count, generator))
        label = "rlnMaxValueProbDistribution"
        if label in whole:
            whole = _with_numbers(whole, label, rows, generator.beta(2.0, 8.0, count))
        return whole.with_columns({KIND_LABEL: list(named)})

    def _with_new_optics(self, table: ParticleTable, rows: Int64) -> ParticleTable:
        later = tuple(OpticsGroup(tuple(_renamed(group).items())) for group in table.optics)
        index = table.optics_index.copy()
        index[rows] += len(table.optics)
        return replace(table, optics=(*table.optics, *later), optics_index=index)

    def _moves(self, table: ParticleTable) -> Int64:
        """Whole pixels `(n, 2)` (x, y) by which each image will be moved."""
        realism, generator = self.realism, self._generator("moves")
        chance, length, angle = generator.uniform(size=(3, len(table)))
        reach = realism.min_off_centre_px + length * (realism.max_off_centre_px - realism.min_off_centre_px)
        moves = reach[:, None] * np.stack([np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)], -1)
        away = (chance < realism.off_centre_fraction) & is_particle(table)
        return np.asarray(np.where(away[:, None], np.rint(moves), 0), np.int64)

    def _labelled(self, table: ParticleTable, aligned: Int64) -> tuple[ParticleTable, ParticleTable]:
        """Return the truth, which says how each aligned pose is told, and the rows as they are told."""
        realism, generator = self.realism, self._generator("labels")
        if len(aligned) == 0 or (labels_only(realism).is_clean and is_particle(table)[aligned].all()):
            return table, table
        particles = aligned[is_particle(table)[aligned]]
        shuffled = generator.permutation(particles)
        count = round(len(particles) * realism.bad_label_fraction)
        bad, others = np.sort(shuffled[:count]), np.sort(shuffled[count:])
        words = np.full(len(table), "none", object)
        words[aligned], words[bad] = "true", "random"
        words[aligned[~is_particle(table)[aligned]]] = "junk"
        told = _with_rotations(table, bad, _random(len(bad), generator))
        rotations = table.select(others).rotations()
        if realism.max_label_jitter_deg:
            rotations = rotations @ self._turns(len(others), generator)
            words[others] = "jitter"
        if realism.label_symmetry_mates:
            group = group_rotations(self.symmetry)
            rotations = group[generator.integers(0, len(group), len(others))] @ rotations
        told = _with_rotations(told, others, rotations)
        return table.with_columns({TRUE_LABEL: list(words)}), told

    def _turns(self, count: int, generator: np.random.Generator) -> Float64:
        axes = generator.standard_normal((count, 3))
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        degrees = generator.uniform(self.realism.min_label_jitter_deg, self.realism.max_label_jitter_deg, count)
        return np.asarray(Rotation.from_rotvec(axes * np.deg2rad(degrees)[:, None]).as_matrix(), np.float64)


def with_used_optics(table: ParticleTable) -> ParticleTable:
    """Return the table with the optics groups that its rows refer to, and no others."""
    used, index = np.unique(table.optics_index, return_inverse=True)
    return replace(table, optics=tuple(table.optics[k] for k in used), optics_index=index.astype(np.int64))


def _counts(table: ParticleTable, label: str, rows: Int64) -> dict[str, int]:
    return dict(sorted(Counter(table.select(rows).column(label)).items())) if label in table else {}


def _renamed(group: OpticsGroup) -> dict[str, str]:
    return dict(group.values) | {"rlnOpticsGroupName": f"{group.name}{_NEW_OPTICS_SUFFIX}"}


def _random(count: int, generator: np.random.Generator) -> Float64:
    quaternions = generator.standard_normal((count, 4))
    return np.asarray(Rotation.from_quat(quaternions).as_matrix(), np.float64).reshape(-1, 3, 3)


def _with_rotations(table: ParticleTable, rows: Int64, rotations: Float64) -> ParticleTable:
    """Return the table with other angles in `rows`, and in their priors where it has such columns."""
    for label, values in zip(ANGLE_LABELS, rotation_to_euler_deg(rotations).T, strict=True):
        for name in (label, f"{label}Prior"):
            if name in table:
                table = _with_numbers(table, name, rows, values)
    return table


def _with_numbers(table: ParticleTable, label: str, rows: Int64, values: Float64) -> ParticleTable:
    texts = table.column(label)
    for row, value in zip(rows, values, strict=True):
        texts[int(row)] = f"{value:.6f}"
    return table.with_columns({label: texts})


def _moved(table: ParticleTable, moves: Int64) -> ParticleTable:
    """Return the table with the origins of images that are moved by `moves`: a shift moves an image by its negative."""
    rows = np.flatnonzero(moves.any(1))
    if len(rows) == 0:
        return table
    pixel = table.pixel_sizes_angstrom()[rows]
    for k, axis in enumerate("XY"):
        origin, prior = f"rlnOrigin{axis}Angst", f"rlnOrigin{axis}PriorAngst"
        if origin not in table:
            table = table.with_columns({origin: ["0.000000"] * len(table)})
        for label in (origin, prior):
            if label in table:
                table = _with_numbers(table, label, rows, table.numbers(label)[rows] - moves[rows, k] * pixel)
    return table
