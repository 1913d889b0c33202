"""A reference: the map that particles of one half-set are compared with, and which particles are in it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cesped_stream.durable import write_whole
from cesped_stream.errors import InvalidCheckpointError, PermanentError, UnreachableFileError
from cesped_stream.imaging.maps import read_map, write_map
from cesped_stream.imaging.noise_model import NoiseModel, NoiseScores
from cesped_stream.imaging.shift_prior import ShiftPrior
from cesped_stream.particles.identities import particle_digests
from cesped_stream.particles.table import ParticleTable

FORMAT: Final = 1

Float32 = NDArray[np.float32]
UInt64 = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Reference:
    """A template for one half-set: filtered, masked, never containing the particles that it scores."""

    volume: Float32
    """`(box, box, box)` (z, y, x); its projections are the images, up to a scale."""
    pixel_size_angstrom: float
    resolution_angstrom: float
    """Finest resolution at which it says something: of its FSC, or of its low-pass."""
    symmetry: str
    half_set: int
    shared: bool
    """True where both half-sets have the same map (`shared_reference`): half maps are then not independent."""
    members: UInt64
    """Sorted digests of the particles in it (`particle_digests`); empty for a given map."""
    noise: NoiseModel | None = None
    """Noise of its optics groups, fitted at the poses that it is made of."""
    shift_prior: ShiftPrior | None = None
    """Where its particles stand in their images; None for a given map."""
    of_noise: NoiseScores | None = None
    """What noise reaches beside it; measured where it is published (`ReferenceMatcher.measure_noise`)."""
    num_left_out: int = 0
    """Members that are not in the map, since they agree with it no better than noise (`reconstruction.agreement`)."""

    @property
    def alignment(self) -> str:
        """What reports call the halves of poses from it: `shared_reference`, or `unknown` upstream of the rows."""
        return "shared_reference" if self.shared else "unknown"

    def rms_radius_angstrom(self) -> float:
        """Return the root mean square distance of its density from its centre: how fast it blurs as it turns."""
        box = self.volume.shape[0]
        axis = ((np.arange(box) - box // 2) * self.pixel_size_angstrom) ** 2
        weight = self.volume.astype(np.float64).clip(0)
        square = sum((weight.sum(tuple({0, 1, 2} - {k})) * axis).sum() for k in range(3))
        return float(np.sqrt(square / max(weight.sum(), 1e-30)))

    def check_holds_none_of(self, table: ParticleTable, scored_half: int | None = None) -> None:
        """Raise PermanentError where a particle of `table` is part of the reference, or not of `scored_half`.

        `scored_half` is by default the reference's own half-set: gold standard. The other one is `cross_half`.
        """
        found = np.flatnonzero(np.isin(particle_digests(table), self.members))
        if len(found):
            name = table.column("rlnImageName")[int(found[0])]
            raise PermanentError(
                f"{table.source or 'particles'}: {len(found)} of {len(table)} particles, first {name}, are in the "
                "reference that would score them; score them with one that was made without them: the other half-set's "
                "(half_mode cross_half, which is no gold standard), or one of other rows"
            )
        scored = self.half_set if scored_half is None else scored_half
        if not self.shared and (others := np.flatnonzero(table.half_sets() != scored)).size:
            raise PermanentError(
                f"{table.source or 'particles'}: {len(others)} particles are not of half-set {scored}, which the "
                f"reference of half-set {self.half_set} scores here; take each half-set's own"
            )


def save_reference(folder: Path, reference: Reference) -> str:
    """Write `reference_<half>.mrc`, `.members` (little-endian uint64), then `.json`; return the reference's id.

    The id is a hash of all that it is: the same reference gives the same bytes. No pickle.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"reference_{reference.half_set}"
    write_map(stem.with_suffix(".mrc"), reference.volume, reference.pixel_size_angstrom)
    write_whole(stem.with_suffix(".members"), reference.members.astype("<u8").tobytes())
    values = _described(reference)
    write_whole(stem.with_suffix(".json"), json.dumps(values, indent=1, sort_keys=True).encode() + b"\n")
    return str(values["id"])


def reference_id(reference: Reference) -> str:
    """Return the id that `save_reference` gives this reference: a hash of all that it is."""
    return str(_described(reference)["id"])


def load_reference(folder: Path, half_set: int) -> Reference:
    """Return a half-set's reference. UnreachableFileError where a file is missing, InvalidCheckpointError where one is
    not what the json says."""
    stem = folder / f"reference_{half_set}"
    try:
        values = json.loads(stem.with_suffix(".json").read_bytes())
        members = np.frombuffer(stem.with_suffix(".members").read_bytes(), "<u8").astype(np.uint64)
    except OSError as error:
        raise UnreachableFileError(f"{error.filename}: {error.strerror}; is there a reference of this half?") from None
    except ValueError as error:
        raise InvalidCheckpointError(f"{stem}.json: {error}; write the reference again") from None
    volume, _ = read_map(stem.with_suffix(".mrc"))
    try:
        noise, shift_prior = values["noise"], values.get("shift_prior")
        reference = Reference(
            volume,
            float(values["pixel_size_angstrom"]),
            float(values["resolution_angstrom"]),
            str(values["symmetry"]),
            int(values["half_set"]),
            bool(values["shared"]),
            members,
            None if noise is None else NoiseModel.from_json(noise),
            None if shift_prior is None else ShiftPrior.from_json(shift_prior),
            None if values.get("of_noise") is None else NoiseScores(**values["of_noise"]),
            int(values.get("num_left_out", 0)),
        )
    except (KeyError, TypeError) as error:
        raise InvalidCheckpointError(f"{stem}.json: {error!r}; write the reference again") from None
    if _described(reference) != values or reference.half_set != half_set:
        raise InvalidCheckpointError(f"{stem}.json: does not describe the files beside it; write the reference again")
    return reference


def _described(reference: Reference) -> dict[str, Any]:
    values = {
        "format": FORMAT,
        "pixel_size_angstrom": reference.pixel_size_angstrom,
        "resolution_angstrom": reference.resolution_angstrom,
        "symmetry": reference.symmetry,
        "half_set": reference.half_set,
        "shared": reference.shared,
        "num_members": len(reference.members),
        "map_sha256": hashlib.sha256(np.ascontiguousarray(reference.volume, "<f4").tobytes()).hexdigest(),
        "members_sha256": hashlib.sha256(reference.members.astype("<u8").tobytes()).hexdigest(),
        "noise": None if reference.noise is None else reference.noise.to_json(),
    }
    if reference.shift_prior is not None:
        values["shift_prior"] = reference.shift_prior.to_json()
    if reference.of_noise is not None:
        values["of_noise"] = reference.of_noise.to_json()
    if reference.num_left_out:
        values["num_left_out"] = reference.num_left_out
    values["id"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    return values
