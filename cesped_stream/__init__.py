"""Poses for cryo-EM particles while the microscope is still collecting: the library."""

__version__ = "0.1.0"
