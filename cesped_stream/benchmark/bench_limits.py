"""What the machine itself can do, to hold a benchmark's figures against: its disk, its page cache, its products."""

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from cesped_stream.benchmark.bench_settings import PosesBench
from cesped_stream.model.device import pick_device

READ_BYTES = 1 << 24
PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}
PRODUCT_SECONDS = 0.5


@dataclass(frozen=True)
class Limits:
    """What the machine allows."""

    disk_bytes_per_second: float
    """One sequential read of a file that was not in the page cache."""
    product_flop_per_second: float
    """A large square float32 matrix product."""


def measured_limits(folder: Path, settings: PosesBench) -> Limits:
    """Measure the disk that `folder` is on and the device; ValueError where CUDA is asked for and there is none."""
    product = product_flop_per_second(pick_device(settings.device))
    return Limits(disk_bytes_per_second(folder, settings.disk_mib * 2**20), product)


class Rate(BaseModel):
    """How fast particles were worked on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_second: float
    """Particles a second of wall time, what was queued on a GPU waited for."""
    cpu_ms: float
    """CPU time a particle of all of the process's threads: other programs change it little."""


def rate_of(work: Callable[[], object], num_particles: int, device: torch.device) -> Rate:
    """Do `work`, which is of `num_particles` altogether, and return its rate."""
    cpu = time.process_time()
    seconds = seconds_of(work, device)
    return Rate(per_second=num_particles / seconds, cpu_ms=1e3 * (time.process_time() - cpu) / num_particles)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall seconds of `work`, what it queued on a GPU included."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def drop_from_page_cache(path: Path) -> float:
    """Write a file out and ask the kernel to forget its pages; return the share of them, 0 to 1, that it still holds.

    0: the next read comes from the disk. 1 on a file system in memory (tmpfs).
    """
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_share(path)


def cached_share(path: Path) -> float:
    """Return the share of a file's pages, 0 to 1, that are in the page cache (mincore); OSError where it is unknown."""
    with open(path, "r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        resident = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        address, length = ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped))
        failed = ctypes.CDLL(None, use_errno=True).mincore(address, length, resident)
        del start  # else the map cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        return sum(page & 1 for page in resident) / pages


def disk_bytes_per_second(folder: Path, num_bytes: int) -> float:
    """Return the rate of one sequential read of a fresh file of `num_bytes`, dropped from the page cache before."""
    path, block = folder / "disk.bin", os.urandom(min(READ_BYTES, num_bytes))
    with open(path, "wb") as stream:
        for start in range(0, num_bytes, len(block)):
            stream.write(block[: num_bytes - start])
    drop_from_page_cache(path)
    buffer = bytearray(len(block))
    with open(path, "rb", buffering=0) as stream:
        started = time.perf_counter()
        while stream.readinto(buffer):
            pass
        seconds = time.perf_counter() - started
    path.unlink()
    return num_bytes / seconds


def product_flop_per_second(device: torch.device) -> float:
    """Return what a large square float32 matrix product reaches, torch's threads on a CPU: a bound that is met."""
    side = PRODUCT_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device) for _ in range(2))
    once = seconds_of(lambda: left @ right, device)  # the first call also loads the library
    once = min(once, seconds_of(lambda: left @ right, device))
    count = max(1, round(PRODUCT_SECONDS / once))
    return count * 2 * side**3 / seconds_of(lambda: [left @ right for _ in range(count)], device)
