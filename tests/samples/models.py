"""A model small enough to be built in a moment."""

from cesped_stream.settings import ModelSettings

TINY = ModelSettings(
    backbone_stages=2,
    backbone_width=8,
    stem="small",
    lmax=2,
    projector_channels=8,
    sphere_order=1,
    s2_channels=2,
    so3_activation_resolution=3,
    grid_order=1,
)
