"""Scenarios that are played again from the disk after each kill."""

from collections.abc import Callable

from cesped_stream_service.coordinator import Coordinator

from .session_bench import Bench, Killed, crash


def played_through(bench: Bench, step: Callable[[str], None], play: Callable[[Bench, Coordinator, int], None]) -> int:
    """Play a scenario, again from the disk after each kill that `step` raises, until it is through; return the kills.

    `play` is given how many kills there were, and finds on the disk how far the former lives came.
    """
    kills = 0
    while True:
        core = None
        try:
            core = bench.open(step)
            play(bench, core, kills)
            core.close()
            return kills
        except Killed:
            kills += 1
            assert kills < 1000
            if core is not None:
                crash(core)
            else:
                # A killed constructor leaves its lock to the garbage collector here, to the kernel in a process.
                assert (bench.session / "state" / "coordinator.lock").exists()


def first_and_last(names: list[str]) -> list[int]:
    """Return the numbers, from 1, of the first and the last step of each name."""
    first = {name: k for k, name in reversed(list(enumerate(names, 1)))}
    last = {name: k for k, name in enumerate(names, 1)}
    return sorted({*first.values(), *last.values()})
