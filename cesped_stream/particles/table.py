"""A table of particles as text columns, with their optics groups: what star readers give and writers take."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cesped_stream.conventions import (
    UNSET_ANGLES_DEG,
    euler_deg_to_rotation,
    half_set_to_random_subset,
    random_subset_to_half_set,
)
from cesped_stream.errors import InvalidStarError

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

OPTICS_GROUP_LABEL = "rlnOpticsGroup"

CTF_OF_PARTICLES = (
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnPhaseShift",
    "rlnCtfBfactor",
    "rlnCtfScalefactor",
)
CTF_OF_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
"""Where a table that was read has the values of the CTF; a star may have each of them in either place."""


def thinned(count: int, most: int) -> Int64:
    """Return at most `most` of `count` row numbers, ascending and evenly spread: every k-th."""
    return np.arange(0, count, -(-count // most) or 1)


@dataclass(frozen=True)
class OpticsGroup:
    """One row of `data_optics`, without its number: two groups with equal values are the same group."""

    values: tuple[tuple[str, str], ...]
    """(label, text) pairs as read, e.g. ("rlnVoltage", "300.0"); never rlnOpticsGroup."""

    def text(self, label: str) -> str | None:
        """Return the text of a label, or None where the group has no such column."""
        return dict(self.values).get(label)

    def number(self, label: str, default: float | None = None) -> float:
        """Return a label as a float; InvalidStarError where it is absent (and no default given) or no number."""
        text = self.text(label)
        if text is None:
            if default is None:
                raise InvalidStarError(f"optics group {self.name!r} has no {label}; add it to data_optics")
            return default
        try:
            return float(text)
        except ValueError:
            raise InvalidStarError(f"optics group {self.name!r}: {label} is {text!r}, not a number") from None

    @property
    def name(self) -> str:
        """rlnOpticsGroupName, or "unnamed"."""
        return self.text("rlnOpticsGroupName") or "unnamed"

    @property
    def pixel_size_angstrom(self) -> float:
        """rlnImagePixelSize; InvalidStarError where it is absent or no number."""
        return self.number("rlnImagePixelSize")

    @property
    def ctf_premultiplied(self) -> bool:
        """Whether the images were multiplied by their CTF (rlnCtfDataAreCtfPremultiplied)."""
        return self.number("rlnCtfDataAreCtfPremultiplied", 0.0) > 0

    @property
    def phase_flipped(self) -> bool:
        """Whether the images were phase-flipped (rlnCtfDataArePhaseFlipped)."""
        return self.number("rlnCtfDataArePhaseFlipped", 0.0) > 0


@dataclass(frozen=True)
class CtfParameters:
    """CTF of n particles, one float64 array `(n,)` a field, in RELION's units."""

    defocus_u_angstrom: Float64
    defocus_v_angstrom: Float64
    defocus_angle_deg: Float64
    phase_shift_deg: Float64
    voltage_kv: Float64
    spherical_aberration_mm: Float64
    amplitude_contrast: Float64
    bfactor_angstrom2: Float64
    scale: Float64
    pixel_size_angstrom: Float64
    premultiplied: NDArray[np.bool_]
    phase_flipped: NDArray[np.bool_]

    def select(self, index: NDArray[np.int64] | slice) -> "CtfParameters":
        """Return the parameters of the images at `index`, in that order."""
        return CtfParameters(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class ParticleTable:
    """Rows of `data_particles` as text in RELION 3.1 layout, and the optics groups they refer to.

    `optics_index[i]` indexes `optics`; no rlnOpticsGroup column is kept in `rows` (writers add it).
    """

    labels: tuple[str, ...]
    rows: list[tuple[str, ...]]
    optics: tuple[OpticsGroup, ...]
    optics_index: Int64
    source: str = field(default="", compare=False)
    first_row: int = field(default=0, compare=False)
    refused: tuple[tuple[int, str], ...] = field(default=(), compare=False)
    """Of a table that `read_tail` gives: rows that stand between these and cannot be used, (place in the star from 0,
    reason). They are not in `rows`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, label: str) -> bool:
        return label in self.labels

    def column(self, label: str) -> list[str]:
        """Return a column's texts; InvalidStarError names the file where it has none."""
        if label not in self.labels:
            raise InvalidStarError(f"{self.source or 'star'}: no column {label}; it has {', '.join(self.labels)}")
        k = self.labels.index(label)
        return [row[k] for row in self.rows]

    def numbers(self, label: str, default: float | None = None) -> Float64:
        """Return a column as float64 `(n,)`, or `default` repeated where the column is absent."""
        if label not in self.labels and default is not None:
            return np.full(len(self), default, np.float64)
        try:
            return np.array(self.column(label), dtype=np.float64)
        except ValueError as error:
            raise InvalidStarError(f"{self.source or 'star'}: column {label}: {error}") from None

    def places_in_star(self) -> tuple[int, ...]:
        """Return the place in the star, from 0, of each row of a table as it was read."""
        refused = {place for place, _ in self.refused}
        last = self.first_row + len(self) + len(refused)
        return tuple(place for place in range(self.first_row, last) if place not in refused)

    def select(self, index: Sequence[int] | Int64) -> "ParticleTable":
        """Return the rows at `index`, in that order; what was refused beside them stays with the whole table."""
        picked = [int(i) for i in index]
        rows = [self.rows[i] for i in picked]
        return replace(self, rows=rows, optics_index=self.optics_index[picked], refused=())

    def without(self, labels: Sequence[str]) -> "ParticleTable":
        """Return the table without these columns; absent ones are ignored."""
        keep = [k for k, label in enumerate(self.labels) if label not in labels]
        return replace(
            self,
            labels=tuple(self.labels[k] for k in keep),
            rows=[tuple(row[k] for k in keep) for row in self.rows],
        )

    def with_columns(self, columns: dict[str, Sequence[str]]) -> "ParticleTable":
        """Return the table with columns replaced in place where they exist, else appended in the order given."""
        for label, values in columns.items():
            if len(values) != len(self):
                raise ValueError(f"{label}: {len(values)} values for {len(self)} rows")
        place = {label: k for k, label in enumerate(self.labels) if label in columns}
        new = [label for label in columns if label not in place]
        rows = []
        for i, row in enumerate(self.rows):
            cells = list(row)
            for label, k in place.items():
                cells[k] = columns[label][i]
            cells.extend(columns[label][i] for label in new)
            rows.append(tuple(cells))
        return replace(self, labels=(*self.labels, *new), rows=rows)

    def rotations(self) -> Float64:
        """Return pose rotations `(n, 3, 3)`, image to map. InvalidStarError where an angle is absent."""
        return euler_deg_to_rotation(
            self.numbers("rlnAngleRot"), self.numbers("rlnAngleTilt"), self.numbers("rlnAnglePsi")
        )

    def has_poses(self) -> NDArray[np.bool_]:
        """Return `(n,)`: all three angles present, finite and not RELION's "unset" (-999 or 999)."""
        labels = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
        if any(label not in self.labels for label in labels):
            return np.zeros(len(self), np.bool_)
        angles = np.stack([self.numbers(label) for label in labels])
        return np.asarray((np.isfinite(angles) & ~np.isin(angles, UNSET_ANGLES_DEG)).all(0), np.bool_)

    def shifts_angstrom(self) -> Float64:
        """Return the shifts `(n, 2)` (x, y) that centre each image; 0 where the star has none."""
        return np.stack([self.numbers(f"rlnOrigin{axis}Angst", 0.0) for axis in "XY"], axis=-1)

    def half_sets(self) -> NDArray[np.int8]:
        """Return each particle's half-set `(n,)`, 0 or 1: rlnRandomSubset where given, else a stable hash of its
        micrograph name, or of its stack's name where there is none."""
        if "rlnRandomSubset" in self.labels:
            given = [int(float(text)) for text in self.column("rlnRandomSubset")]
            try:
                return np.array([random_subset_to_half_set(value) for value in given], np.int8)
            except ValueError as error:
                raise InvalidStarError(f"{self.source or 'star'}: {error}; remove the column or correct it") from None
        return np.array([_stable_half(name) for name in self.micrographs()], np.int8)

    def micrographs(self) -> list[str]:
        """Return the micrograph name of each row, or its stack's name where the star has no micrographs."""
        if "rlnMicrographName" in self.labels:
            return self.column("rlnMicrographName")
        return [name.partition("@")[2] or name for name in self.column("rlnImageName")]

    def pixel_sizes_angstrom(self) -> Float64:
        """Return the pixel size `(n,)` of each particle's optics group."""
        return self._of_optics([group.pixel_size_angstrom for group in self.optics])

    def ctf_values(self, label: str, default: float | None = None) -> Float64:
        """Return a value of the CTF `(n,)`: the particle's, else its optics group's, else `default`; as RELION does.

        InvalidStarError where it is nowhere and no default is given, or is no number.
        """
        if label in self.labels:
            return self.numbers(label)
        used = np.unique(self.optics_index)
        if default is None and any(self.optics[k].text(label) is None for k in used):
            raise InvalidStarError(
                f"{self.source or 'star'}: no {label}, neither a column of the particles nor of data_optics; add it"
            )
        return self._of_optics([group.number(label, np.nan if default is None else default) for group in self.optics])

    def ctf_parameters(self) -> CtfParameters:
        """Return the CTF of every row. InvalidStarError where defocus, voltage, Cs or contrast is absent."""
        optics = self.optics
        return CtfParameters(
            defocus_u_angstrom=self.ctf_values("rlnDefocusU"),
            defocus_v_angstrom=self.ctf_values("rlnDefocusV"),
            defocus_angle_deg=self.ctf_values("rlnDefocusAngle"),
            phase_shift_deg=self.ctf_values("rlnPhaseShift", 0.0),
            voltage_kv=self.ctf_values("rlnVoltage"),
            spherical_aberration_mm=self.ctf_values("rlnSphericalAberration"),
            amplitude_contrast=self.ctf_values("rlnAmplitudeContrast"),
            bfactor_angstrom2=self.ctf_values("rlnCtfBfactor", 0.0),
            scale=self.ctf_values("rlnCtfScalefactor", 1.0),
            pixel_size_angstrom=self.pixel_sizes_angstrom(),
            premultiplied=self._of_optics([float(g.ctf_premultiplied) for g in optics]) > 0,
            phase_flipped=self._of_optics([float(g.phase_flipped) for g in optics]) > 0,
        )

    def with_half_sets(self, half_sets: Sequence[int]) -> "ParticleTable":
        """Return the table with these half-sets (0 or 1) in rlnRandomSubset, whatever stood there."""
        return self.with_columns({"rlnRandomSubset": [str(half_set_to_random_subset(half)) for half in half_sets]})

    def with_image_sizes(self, box_sizes: Sequence[int]) -> "ParticleTable":
        """Return the table with rlnImageSize (and 2 dimensions) in each optics group, from each row's box size.

        A group whose rows have several box sizes becomes several; one without rows is left out. RELION takes the box
        from here, so InvalidStarError where a group already names another size than its images have.
        """
        place: dict[OpticsGroup, int] = {}
        index = []
        for row, (k, box) in enumerate(zip(self.optics_index, box_sizes, strict=True)):
            group = self.optics[k]
            named = group.number("rlnImageSize", float(box))
            if named != box:
                raise InvalidStarError(
                    f"{self.source or 'star'}: row {self.first_row + row + 1}: optics group {group.name!r} has "
                    f"rlnImageSize {named:g}, the image {box} pixels; correct data_optics"
                )
            sizes = {"rlnImageSize": str(box), "rlnImageDimensionality": "2"}
            sized = OpticsGroup(tuple((dict(group.values) | sizes).items()))
            index.append(place.setdefault(sized, len(place)))
        return replace(self, optics=tuple(place), optics_index=np.array(index, np.int64))

    def _of_optics(self, values: list[float]) -> Float64:
        return np.asarray(values, np.float64)[self.optics_index]


def _stable_half(name: str) -> int:
    # the file name alone: programs name one micrograph with and without its job's folder
    name = name.rpartition("/")[2]
    return hashlib.sha256(name.encode()).digest()[0] & 1
