"""Particles as RELION writes them: star tables, optics, stacks, and whether what landed is complete. No torch here."""
