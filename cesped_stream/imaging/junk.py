"""What pickers take for particles: which rows are such, and pictures of it (no CTF, no noise): contamination, carbon
edges, another protein."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cesped_stream.imaging.noise import coloured_noise
from cesped_stream.particles.table import ParticleTable

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

PARTICLE = "particle"
"""What `cestreamKind` says of a row that is no junk."""
KIND_LABEL = "cestreamKind"
REALISM_NAME = "realism.json"
"""What an entry contains besides clean particles, or a replay added: its settings, and counts of what came of them."""

_CHAIN_POINTS = 240
_EDGE_WIDTH_PX = 1.5


def kinds_of(table: ParticleTable) -> list[str]:
    """Return what each row is, in the words of `cestreamKind`; all are particles where nobody says so."""
    return table.column(KIND_LABEL) if KIND_LABEL in table else [PARTICLE] * len(table)


def is_particle(table: ParticleTable) -> NDArray[np.bool_]:
    """Return `(n,)`: false for rows that `cestreamKind` calls junk, which has no pose to be wrong about."""
    return np.array([kind == PARTICLE for kind in kinds_of(table)], np.bool_)


def ice_picture(size: int, diameter_px: float, generator: np.random.Generator) -> Float32:
    """Return `(size, size)` with one to three dense, uneven blobs of 0.25 to 0.9 diameters near the centre."""
    picture = np.zeros((size, size))
    for _ in range(generator.integers(1, 4)):
        y, x = generator.normal(0, 0.2 * diameter_px, 2)
        radius = generator.uniform(0.25, 0.9) / 2 * diameter_px
        picture += generator.uniform(0.6, 1.4) * _blob(size, x, y, radius, generator)
    return picture.astype(np.float32)


def edge_picture(size: int, diameter_px: float, generator: np.random.Generator) -> Float32:
    """Return `(size, size)` crossed by the edge of a support film: denser, grainy and uneven on one side."""
    x, y = _grid(size)
    angle, offset = generator.uniform(0, 2 * np.pi), generator.uniform(-0.3, 0.3) * diameter_px
    across = np.cos(angle) * x + np.sin(angle) * y - offset
    wave = 0.04 * diameter_px * np.sin((-np.sin(angle) * x + np.cos(angle) * y) * 2 * np.pi / (1.7 * diameter_px))
    film = 1 / (1 + np.exp(-np.clip((across + wave) / _EDGE_WIDTH_PX, -40, 40)))
    grain = coloured_noise(1, size, 1.0, diameter_px, generator)[0]
    slope = 1 + generator.uniform(-0.5, 0.5) * across / size
    return np.asarray(film * (slope + 0.35 * grain), np.float32)


def uneven_picture(size: int, diameter_px: float, generator: np.random.Generator) -> Float32:
    """Return `(size, size)` of nothing but ice of uneven thickness: smooth, without any shape of its own."""
    return np.asarray(coloured_noise(1, size, 3.0, diameter_px, generator)[0], np.float32)


def protein_picture(size: int, diameter_px: float, generator: np.random.Generator) -> Float32:
    """Return `(size, size)` with a view, at random, of another molecule: the same chain of blobs in every picture.

    The molecule is 0.8 diameters long; its blobs are Gaussians of sigma 1.5 pixels or a fortieth of the diameter.
    """
    points = _chain() * (0.8 / 2 * diameter_px)
    turned = points @ np.asarray(Rotation.from_quat(generator.standard_normal(4)).as_matrix()).T
    sigma = max(1.5, diameter_px / 40)
    shift = generator.uniform(-0.05, 0.05, 2) * diameter_px
    axis = np.arange(size) - size // 2
    along_x, along_y = (
        np.exp(-((axis - turned[:, k, None] - shift[k]) ** 2) / (2 * sigma**2)) for k in (0, 1)
    )  # fmt: skip
    return np.asarray(along_y.T @ along_x, np.float32)


PICTURES: dict[str, Callable[[int, float, np.random.Generator], Float32]] = {
    "noise": uneven_picture,
    "ice": ice_picture,
    "edge": edge_picture,
    "other_protein": protein_picture,
}
"""Pictures by kind; `two_particles` is made of the entry's own particles."""

CONTRAST: dict[str, tuple[float, float]] = {
    "noise": (0.0, 1.0),
    "ice": (1.5, 4.0),
    "edge": (1.0, 2.5),
    "other_protein": (0.5, 0.9),
}
"""Range of the standard deviation of a picture after the CTF, over that of a particle's signal."""


def _chain() -> Float64:
    """Return points `(240, 3)` within the unit ball: three lobes of a self-avoiding look, the same at every call."""
    generator = np.random.default_rng(20)
    centres = np.array([[0.0, 0.0, -0.62], [0.25, 0.1, 0.05], [-0.2, 0.45, 0.55]])
    radii = np.array([0.34, 0.3, 0.36])
    lobe = generator.integers(0, 3, _CHAIN_POINTS)
    points = generator.standard_normal((_CHAIN_POINTS, 3))
    points *= (generator.uniform(size=_CHAIN_POINTS) ** (1 / 3) / np.linalg.norm(points, axis=1))[:, None]
    return np.asarray(centres[lobe] + points * radii[lobe, None], np.float64)


def _blob(size: int, x0: float, y0: float, radius: float, generator: np.random.Generator) -> Float64:
    x, y = _grid(size)
    distance, angle = np.hypot(x - x0, y - y0), np.arctan2(y - y0, x - x0)
    outline = np.full_like(distance, radius)
    for lobes in (2, 3, 5):
        outline += radius * generator.normal(0, 0.2) / lobes * np.cos(lobes * angle + generator.uniform(0, 2 * np.pi))
    inside = 1 / (1 + np.exp(-np.clip((outline - distance) / _EDGE_WIDTH_PX, -40, 40)))
    return np.asarray(inside * (1 + 0.3 * generator.standard_normal() * (x - x0) / max(radius, 1.0)), np.float64)


def _grid(size: int) -> tuple[Float64, Float64]:
    axis = np.arange(size, dtype=np.float64) - size // 2
    return np.broadcast_to(axis, (size, size)), np.broadcast_to(axis[:, None], (size, size))
