"""Settings of simulated particles."""

from typing import Self

from pydantic import Field, model_validator

from cesped_stream.settings.base import Settings, Symmetry


class OpticsSettings(Settings):
    """One optics group of a simulated entry."""

    voltage_kv: float = Field(300.0, gt=0, description="Acceleration voltage.")
    spherical_aberration_mm: float = Field(2.7, ge=0, description="Spherical aberration Cs.")
    amplitude_contrast: float = Field(0.1, ge=0, le=1, description="Amplitude contrast.")
    phase_shift_deg: float = Field(0.0, ge=0, le=180, description="Phase shift of a phase plate.")


class SimulationSettings(Settings):
    """What particles of a map a simulation makes; box and pixel size are the map's."""

    num_particles: int = Field(5000, ge=2, description="Particles of both half-sets together, half in each.")
    snr: float = Field(
        0.1,
        gt=0,
        description="Variance of the signal over that of the white noise, inside the particle circle, after the CTF, "
        "at the map's pixel size; inf: no noise.",
    )
    particle_radius_angstrom: float = Field(
        0.0, ge=0, description="Radius of the circle in which the SNR holds; 0: the circle inscribed in the box."
    )
    max_shift_angstrom: float = Field(5.0, ge=0, description="Centring errors are uniform within +- this in x and y.")
    ctf: bool = Field(True, description="false: defocus 0, Cs 0, amplitude contrast 1, whose CTF is 1 everywhere.")
    optics: tuple[OpticsSettings, ...] = Field(
        (OpticsSettings(), OpticsSettings(voltage_kv=200.0, amplitude_contrast=0.07)),
        min_length=1,
        description="Optics groups; micrographs take them in turn.",
    )
    min_defocus_angstrom: float = Field(8000.0, gt=0, description="Least mean defocus of a micrograph (underfocus).")
    max_defocus_angstrom: float = Field(20000.0, gt=0, description="Largest mean defocus of a micrograph.")
    defocus_spread_angstrom: float = Field(300.0, ge=0, description="Particles lie within +- this of their micrograph.")
    max_astigmatism_angstrom: float = Field(
        400.0, ge=0, description="DefocusU - DefocusV of a micrograph is uniform from 0 to this."
    )
    particles_per_micrograph: int = Field(50, ge=1, description="Particles on one micrograph, of both half-sets.")
    symmetry: Symmetry = Field(
        "C1",
        description="The map's point group, for info_{0,1}.json; it changes no pose.",
    )
    seed: int = Field(0, ge=0, description="Fixes every number of the entry.")

    @model_validator(mode="after")
    def _ranges_areordered(self) -> Self:
        if self.min_defocus_angstrom > self.max_defocus_angstrom:
            raise ValueError(
                f"min_defocus_angstrom {self.min_defocus_angstrom:g} is above max_defocus_angstrom "
                f"{self.max_defocus_angstrom:g}; exchange them"
            )
        return self
