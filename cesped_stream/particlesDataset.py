"""`from cesped_stream.particlesDataset import ParticlesDataset`: Listing 1 of the paper, with the package's name changed."""

from cesped_stream.benchmark.dataset import ParticlesDataset

__all__ = ["ParticlesDataset"]
