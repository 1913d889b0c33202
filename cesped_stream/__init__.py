"""Poses for cryo-EM particles while the microscope is still collecting: the library."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cesped_stream.benchmark.cesped_evaluate import evaluate

__all__ = ["__version__", "evaluate"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `import cesped_stream` alone loads no torch."""
    if name == "evaluate":
        from cesped_stream.benchmark.cesped_evaluate import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
