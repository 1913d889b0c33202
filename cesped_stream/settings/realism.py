"""Settings of what real sessions contain and clean simulations do not."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cesped_stream.settings.base import Settings

JunkKind = Literal["noise", "ice", "edge", "two_particles", "other_protein"]


REALISM_PRESETS: dict[str, dict[str, Any]] = {
    "clean": {},
    "session": {
        "junk_fraction": 0.3,
        "noise_exponent": 1.0,
        "added_noise": 0.25,
        "neighbours": 0.5,
        "min_envelope_angstrom2": 80.0,
        "max_envelope_angstrom2": 200.0,
        "snr_end_over_start": 0.5,
        "defocus_drift_angstrom": 4000.0,
        "new_optics_at": 0.5,
        "preferred_fraction": 0.8,
        "off_centre_fraction": 0.25,
        "bad_label_fraction": 0.1,
        "label_symmetry_mates": True,
    },
}
"""What a preset sets where the user sets nothing; `clean` adds nothing at all."""


class RealismSettings(Settings):
    """What real sessions contain and clean simulations do not. What is not given is the preset's."""

    preset: Literal["clean", "session"] = Field(
        "clean", description="clean: nothing of this; session: all of it. It is the default of every setting below."
    )
    seed: int = Field(0, ge=0, description="Fixes every number that realism draws.")
    junk_fraction: float = Field(0.0, ge=0, le=0.5, description="Share of the picks that show no single particle.")
    junk_kinds: tuple[JunkKind, ...] = Field(
        ("noise", "ice", "edge", "two_particles", "other_protein"), min_length=1, description="Kinds of junk, in turn."
    )
    noise_exponent: float = Field(
        0.0, ge=0, le=4, description="The noise's power falls with frequency to minus this; 0: white."
    )
    noise_corner_angstrom: float = Field(
        200.0, gt=0, description="Noise is flat below this period, so that its power stays finite."
    )
    added_noise: float = Field(
        0.0, ge=0, le=100, description="Replay: variance of noise added to all images, over the variance they have."
    )
    neighbours: float = Field(0.0, ge=0, le=4, description="Mean number of neighbouring particles around a pick.")
    min_neighbour_diameters: float = Field(0.8, gt=0, le=5, description="Least distance of a neighbour, in diameters.")
    max_neighbour_diameters: float = Field(1.2, gt=0, le=5, description="Largest distance of a neighbour.")
    particle_diameter_angstrom: float = Field(
        0.0,
        ge=0,
        description="Diameter that neighbours and clipping are measured by; 0: twice "
        "simulate.particle_radius_angstrom, else measured from the map (simulate), 0.7 of the box (replay).",
    )
    min_envelope_angstrom2: float = Field(
        0.0, ge=0, le=1000, description="Simulate: least B of a micrograph's envelope exp(-B s^2 / 4)."
    )
    max_envelope_angstrom2: float = Field(
        0.0, ge=0, le=1000, description="Simulate: largest B; the stars do not tell it, as a microscope does not."
    )
    snr_end_over_start: float = Field(
        1.0, gt=0, le=1, description="SNR of the session's last particle over that of its first; geometric in between."
    )
    defocus_drift_angstrom: float = Field(
        0.0, ge=0, le=50000, description="Simulate: how far the defocus range has moved up by the session's end."
    )
    new_optics_at: float = Field(
        0.0, ge=0, lt=1, description="Share of the session after which new optics groups replace the old; 0: never."
    )
    preferred_fraction: float = Field(
        0.0, ge=0, le=1, description="Share of the particles whose view lies in a preferred cone; 0: views as they are."
    )
    preferred_cones: int = Field(3, ge=1, le=20, description="Number of preferred cones.")
    preferred_cone_deg: float = Field(30.0, gt=0, le=90, description="Half angle of each preferred cone.")
    off_centre_fraction: float = Field(0.0, ge=0, le=1, description="Share of the picks that are badly centred.")
    min_off_centre_px: float = Field(5.0, ge=0, le=100, description="Least distance of such a pick, in pixels.")
    max_off_centre_px: float = Field(8.0, ge=0, le=100, description="Largest distance of such a pick, in pixels.")
    bad_label_fraction: float = Field(
        0.0, ge=0, le=1, description="Replay: share of the aligned particles that land with a random pose."
    )
    min_label_jitter_deg: float = Field(
        0.0, ge=0, le=180, description="Replay: every other aligned pose is turned by at least this about any axis."
    )
    max_label_jitter_deg: float = Field(0.0, ge=0, le=180, description="Replay: and by this at most.")
    label_symmetry_mates: bool = Field(
        False, description="Replay: aligned poses land as any of their symmetry mates, all as true."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_what_is_unset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**REALISM_PRESETS.get(data.get("preset", "clean"), {}), **data}

    @model_validator(mode="after")
    def _ranges_areordered(self) -> Self:
        for what in ("neighbour_diameters", "envelope_angstrom2", "off_centre_px", "label_jitter_deg"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low > high:
                raise ValueError(f"min_{what} {low:g} is above max_{what} {high:g}; exchange them")
        return self

    def beyond_preset(self) -> tuple[str, ...]:
        """Return the names of the settings that differ from what their preset says."""
        usual = RealismSettings(preset=self.preset)
        return tuple(name for name in type(self).model_fields if getattr(self, name) != getattr(usual, name))

    def without(self, names: frozenset[str]) -> Self:
        """Return these settings with the named ones off, as in the preset `clean`."""
        return self.model_copy(update={name: type(self).model_fields[name].default for name in names})

    @property
    def drifts(self) -> bool:
        """Whether later particles differ from earlier ones: in SNR, defocus or optics group."""
        return self.snr_end_over_start != 1 or self.defocus_drift_angstrom != 0 or self.new_optics_at != 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is added: what remains is to the byte what there is without these settings."""
        return all(getattr(self, name) == type(self).model_fields[name].default for name in _REALISM_SWITCHES)


SIMULATE_ONLY = frozenset({"min_envelope_angstrom2", "max_envelope_angstrom2", "defocus_drift_angstrom"})
"""What cannot be done to a recorded image: its envelope and defocus are in it, and the noise has neither."""


LABEL_SETTINGS = frozenset(
    {"bad_label_fraction", "min_label_jitter_deg", "max_label_jitter_deg", "label_symmetry_mates"}
)
"""What a replay does to the poses that it tells; the images stay."""


REPLAY_ONLY = LABEL_SETTINGS | {"added_noise"}


IMAGE_SWITCHES = frozenset(
    {
        *("junk_fraction", "noise_exponent", "neighbours", "snr_end_over_start", "new_optics_at"),
        *("preferred_fraction", "off_centre_fraction", "added_noise"),
    }
)
"""What each, at its default, turns a kind of realism in the images or the choice of particles off."""


_REALISM_SWITCHES = IMAGE_SWITCHES | SIMULATE_ONLY | LABEL_SETTINGS
