"""Poses for cryo-EM particles while the microscope is still collecting: the library.

`ParticlesDataset` and `evaluate` are imported when they are first asked for: importing this package imports no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cesped_stream.benchmark.cesped_evaluate import evaluate
    from cesped_stream.benchmark.dataset import ParticlesDataset

__all__ = ["ParticlesDataset", "__version__", "evaluate"]
__version__ = "0.1.0"

_HOMES = {
    "ParticlesDataset": "cesped_stream.benchmark.dataset",
    "evaluate": "cesped_stream.benchmark.cesped_evaluate",
}
"""Public names and the modules that they are imported from on first use."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
