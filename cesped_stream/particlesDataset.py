"""`from cesped_stream.particlesDataset import ParticlesDataset`: the paper's Listing 1, with the package's name changed."""

from cesped_stream.benchmark.dataset import ParticlesDataset

__all__ = ["ParticlesDataset"]
