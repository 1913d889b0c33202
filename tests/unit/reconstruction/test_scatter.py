"""The compiled loops: how work is shared, and that they need no place for their cache."""

import numpy as np
import pytest

from cesped_stream.reconstruction import scatter


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_slabs_cover_every_plane_once_and_share_the_points(count: int) -> None:
    edges = scatter.slab_edges(131, count)
    assert (edges[0], edges[-1], len(edges)) == (0, 131, count + 1)
    assert sorted(edges) == edges
    directions = np.random.default_rng(0).normal(size=(4000, 2, 3))
    first = directions[:, 0] / np.linalg.norm(directions[:, 0], axis=1, keepdims=True)
    radius = 65 * np.sqrt(np.random.default_rng(1).uniform(size=4000))
    counts, _ = np.histogram(65.5 + radius * first[:, 2], np.array(edges))
    assert counts.max() <= 1.5 * counts.mean()


def test_loops_compile_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    real = scatter.numba.njit

    def njit(**options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    with monkeypatch.context() as patch:
        patch.setattr(scatter.numba, "njit", njit)
        function = scatter.compiled(lambda x: x + 1)
    assert function(2) == 3


def test_an_error_in_a_thread_is_raised() -> None:
    def fails(part: int) -> None:
        raise ValueError(f"part {part}")

    with pytest.raises(ValueError, match="part 1"):
        scatter._in_threads([(1,), (1,)], fails)
