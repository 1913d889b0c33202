"""Settings of maps: what makes them, and references of them."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cesped_stream.settings.base import Device, Settings


class EngineSettings(Settings):
    """What makes maps of particles: our own backprojection, or relion_reconstruct as an external program."""

    kind: Literal["builtin", "relion"] = Field("builtin", description="Our own backprojection, or RELION's program.")
    device: Device = Field("auto", description="Of the builtin engine; auto: a GPU where there is one.")
    relion_folder: Path | None = Field(None, description="Folder of RELION's programs; default: PATH.")
    skip_gridding: bool = Field(
        False,
        description="RELION without its iterative gridding, which is then equal to the builtin engine and faster; "
        "published figures are with it.",
    )
    processes: int = Field(1, ge=1, le=512, description="Of RELION; more than 1 run under mpirun.")
    mpirun: str = Field(
        "mpirun",
        min_length=1,
        description="Command that starts MPI programs, options included: Open MPI as root needs --allow-run-as-root, "
        "for more processes than cores --oversubscribe.",
    )
    singularity_image: Path | None = Field(
        None,
        description="Singularity/Apptainer image with RELION, run instead of an installed one; relion_folder and "
        "mpirun are then the image's own.",
    )


class ReferenceSettings(Settings):
    """How a half-set's reference is made from its aligned rows, or from a given map."""

    finest_angstrom: float = Field(
        6.0, gt=0, description="Finest resolution kept in a reference; larger images are made smaller accordingly."
    )
    mask_lowpass_angstrom: float = Field(
        15.0, ge=0, description="Low-pass of the map from whose density the soft mask is made."
    )
    map_lowpass_angstrom: float = Field(
        20.0, gt=0, description="Low-pass of a given map: both half-sets share it, so it must not carry detail."
    )
    background_radius_angstrom: float = Field(
        0.0, ge=0, description="Pixels farther than this from the centre are background; 0: the inscribed circle."
    )
    noise_rows: int = Field(1000, ge=20, description="Aligned rows, at most, on whose residuals the noise is fitted.")
    rebuild_rows: int = Field(
        0,
        ge=0,
        description="A session makes its references anew, of aligned and of confidently posed rows, whenever so many "
        "more of the latter have accumulated in each half-set; 0: never.",
    )
    rebuild_least_confidence: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Confidence, calibrated or not, that a posed row in a rebuilt reference needs.",
    )
    rebuild_max_rows: int = Field(
        10_000, ge=20, description="Posed rows of a half-set, at most, in a rebuilt reference: the newest ones."
    )
    leave_out: bool = Field(
        True,
        description="Leave out aligned rows that the map of other rows explains, at their poses, no better than noise: "
        "junk and wrong poses.",
    )
