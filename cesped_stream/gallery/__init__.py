"""Proposals from a gallery of projections of a reference."""
