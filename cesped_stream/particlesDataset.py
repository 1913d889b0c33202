"""`ParticlesDataset` in the module that the paper's Listing 1 imports it from."""

from cesped_stream.benchmark.dataset import ParticlesDataset

__all__ = ["ParticlesDataset"]
