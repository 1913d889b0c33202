"""Settings of a replay. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from cesped_stream.settings import Settings


class ReplaySettings(Settings):
    """What lands when; the same settings on the same entry give the same bytes."""

    seed: int = Field(0, ge=0, description="Seeds the order in which micrographs arrive.")
    order: Literal["shuffled", "recorded"] = Field(
        "shuffled",
        description="Order in which micrographs arrive: drawn with the seed, or as the entry first names them. "
        "Not given: recorded where the entry was simulated with a drift along it.",
    )
    rate: float = Field(0.0, ge=0, description="Streamed particles per second; 0: as fast as the disk takes them.")
    batch_rows: int = Field(200, ge=1, description="Rows of a streamed star, and images of any stack, at most.")
    first_aligned: int = Field(
        0,
        ge=0,
        description="Whole micrographs with at least this many particles land first, with their poses.",
    )
    first_aligned_micrographs: int = Field(0, ge=0, description="So many micrographs land first, with poses.")
    aligned_micrographs: tuple[str, ...] = Field(
        (), description="These micrographs (rlnMicrographName) land first, with poses."
    )
    star_first: bool = Field(False, description="Write each star before its stack, as some pipelines do.")
    done_markers: bool = Field(True, description="Write `<star>.done` after the aligned star.")
    limit: int = Field(0, ge=0, description="Land at most about so many particles (whole micrographs); 0: all.")

    @model_validator(mode="after")
    def _one_choice_of_aligned(self) -> "ReplaySettings":
        chosen = [
            name
            for name in ("first_aligned", "first_aligned_micrographs", "aligned_micrographs")
            if getattr(self, name)
        ]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} each choose the aligned batch; give one of them")
        return self
