"""Whether a checkpoint that was trained on one entry can pose another one (the paper's section 3.3)."""

from pathlib import Path
from urllib.parse import unquote

import numpy as np

from cesped_stream.errors import InvalidSettingsError
from cesped_stream.model.checkpoint import CheckpointManifest, read_manifest
from cesped_stream.particles.stacks import STACK_LABEL, read_header
from cesped_stream.particles.table import ParticleTable
from cesped_stream.reference_pair import ReferenceManifest, checkpoint_kind, read_reference_manifest

LEAST_FIELD, LARGEST_FIELD = 0.5, 3.0
"""Side of the particles' box over that of the network's field of view, in angstrom: outside, it is refused."""
CUT_FIELD = 1.5
OWN_ORIGINS = ("random", "imagenet", "aligned rows")
"""What weights or references start from that holds no particle but those that the manifest names."""

Manifest = CheckpointManifest | ReferenceManifest


def manifest_of(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint of networks or of references. UnreachableFileError, InvalidCheckpointError.

    InvalidSettingsError for a fused one, which names what to take instead.
    """
    if checkpoint_kind(folder) == "fused":
        raise InvalidSettingsError(
            f"checkpoint {folder}: holds both kinds; take {folder}/network or {folder}/references"
        )
    return read_reference_manifest(folder) if checkpoint_kind(folder) == "reference" else read_manifest(folder)


def check_transfer(
    manifest: Manifest, table: ParticleTable, symmetry: str, *, allow_symmetry: bool = False
) -> list[str]:
    """Return warnings, in words, for particles (`cestreamStack` names their stacks) that a checkpoint is to pose.

    Images of any box and pixel size are brought to the network's pixel size; its field of view in angstrom is what
    must make sense. References are compared at their own frequencies, whatever the box. Raises InvalidSettingsError
    where the field is absurd, and for another symmetry than the checkpoint's.
    """
    if manifest.symmetry != symmetry and not allow_symmetry:
        raise InvalidSettingsError(
            f"symmetry: {trained_on(manifest)} is for {manifest.symmetry}, this entry is {symmetry}; with "
            f"--allow-symmetry its poses are taken as they are, and errors are under {symmetry}"
        )
    said = [] if manifest.symmetry == symmetry else [f"Trained for {manifest.symmetry}; errors are under {symmetry}."]
    if isinstance(manifest, ReferenceManifest):
        return [
            *said,
            "Poses are in the frame of the checkpoint's references: errors mean something where it is the entry's.",
        ]
    field = manifest.preprocess.image_size * manifest.network_pixel_size_angstrom
    for box, pixel_size in sorted(_boxes(table)):
        said += _field_words(box, pixel_size, field, manifest.network_pixel_size_angstrom)
    return said


def trained_on(manifest: Manifest) -> str:
    """Return in words what a checkpoint was trained on."""
    return f"checkpoint {manifest.checkpoint_id} (trained on {manifest.trained_on or 'data that it does not name'})"


def why_not_known_to_be_of_another_entry(manifest: Manifest, entry_name: str) -> str:
    """Return why a checkpoint may have seen the entry's particles, "" where it is known that it has not.

    Known from the manifest alone: it names an entry, that entry is another one, and the weights did not start from a
    checkpoint, whose own data nobody recorded here. Entries whose names end alike after an underscore share stacks
    (`consensus_10648` and `10648`) and count as one. A folder that was renamed is not found out.
    """
    name = manifest.trained_on
    if not name:
        return "it does not name what it was trained on"
    if name.endswith(".star"):
        return f"it was trained on {name}, a star file, which may be of any entry"
    if name.casefold().rpartition("_")[2] == entry_name.casefold().rpartition("_")[2]:
        return f"it was trained on {name}"
    if manifest.origin not in OWN_ORIGINS:
        return f"its training began from {manifest.origin}, whose data it does not name"
    return ""


def _field_words(box: int, pixel_size: float, field: float, network_pixel_size: float) -> list[str]:
    own = box * pixel_size
    what = f"box of {box} px at {pixel_size:g} Å ({own:.0f} Å)"
    if not LEAST_FIELD <= own / field <= LARGEST_FIELD:
        raise InvalidSettingsError(
            f"{what}: the network sees {field:.0f} Å, {field / own:.2g} times that; particles of another size "
            "altogether need a checkpoint of their own"
        )
    said = []
    if own < field * (1 - 1e-3):
        said.append(f"The {what} is smaller than the {field:.0f} Å that the network sees: the rest is filled with 0.")
    elif own > field * CUT_FIELD:
        said.append(f"Of the {what} the network sees the middle {field:.0f} Å: a large particle is cut.")
    if pixel_size > network_pixel_size * (1 + 1e-3):
        said.append(
            f"Pixels of {pixel_size:g} Å are coarser than the network's {network_pixel_size:g} Å: it sees images more "
            "blurred than those that it was trained on."
        )
    return said


def _boxes(table: ParticleTable) -> set[tuple[int, float]]:
    stacks, pixel_sizes = table.column(STACK_LABEL), np.asarray(table.pixel_sizes_angstrom()).tolist()
    sizes = {stack: read_header(Path(unquote(stack))).box_size for stack in set(stacks)}
    return {(sizes[stack], pixel_size) for stack, pixel_size in zip(stacks, pixel_sizes, strict=True)}
