"""A contact sheet of an entry's images, a row a kind, so that a scientist sees what is in the stream."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cesped_stream.benchmark.entries import open_entry
from cesped_stream.imaging.junk import PARTICLE, kinds_of
from cesped_stream.particles.stacks import StackReader, read_images

EXAMPLES_NAME = "examples.png"
_COLUMNS = 10
_INCHES = 1.1


def save_examples(folder: Path) -> Path:
    """Write `examples.png` into an entry's folder and return its path: ten images a kind, spread over the session.

    Grey levels are the image's mean +- 3 standard deviations, density bright; images as they are, nothing filtered.
    """
    table = open_entry(folder).particles()
    kinds = np.array(kinds_of(table))
    names = sorted(set(kinds), key=lambda name: (name != PARTICLE, name))
    figure = Figure(figsize=(_COLUMNS * _INCHES, len(names) * (_INCHES + 0.2)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names), _COLUMNS, squeeze=False)
    with StackReader() as reader:
        for name, row_of_axes in zip(names, axes, strict=True):
            rows = np.flatnonzero(kinds == name)
            rows = rows[np.unique(np.linspace(0, len(rows) - 1, _COLUMNS).round().astype(int))]
            row_of_axes[0].set_title(name.replace("_", " "), loc="left", fontsize=9)
            for axis in row_of_axes:
                axis.set_axis_off()
            images = [image for group in read_images(table.select(rows), reader) for image in group.images]
            for image, axis in zip(images, row_of_axes, strict=False):
                low, high = image.mean() - 3 * image.std(), image.mean() + 3 * image.std()
                axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    figure.savefig(folder / EXAMPLES_NAME, dpi=90)
    return folder / EXAMPLES_NAME
