"""Refinement of proposed poses by projection matching."""
