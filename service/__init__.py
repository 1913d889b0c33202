"""The daemon's processes. Imports `cesped_stream`, never the reverse."""
