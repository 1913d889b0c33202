"""Another program run to its end: its progress bar read, its last words in the error, ended when we are."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from cesped_stream.errors import ExternalProgramError

BAR_DOTS = 60
STOP_SECONDS = 5.0
LAST_WORDS_BYTES = 2000

TIED_TO_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{error.strerror}; can it be run by hand?")
"""
"""Becomes the program that it is given. Python code between fork and exec is unsafe where there are threads."""

_DOTS = re.compile(rb"(?:sec|min|hrs) (\.*)~~")


def run_program(command: Sequence[str], folder: Path, on_progress: Callable[[float], None] = lambda done: None) -> None:
    """Run `command` in `folder`; `on_progress` gets the share done, 0 to 1, never falling, as RELION's bar shows it.

    Raises ExternalProgramError with the command and its last words where it cannot start or ends with an error. When
    this call is left by an exception (an interrupt) the program is terminated, and killed if it does not obey. When
    this process ends without one (kill -9), or the thread of this call does, Linux sends the program SIGTERM; what
    lies in `folder` stays then.
    """
    tied = [sys.executable, "-I", "-S", "-c", TIED_TO_PARENT, str(os.getpid()), *command]
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                tied, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        except OSError as error:
            raise ExternalProgramError(f"{shlex.join(command)}: {error.strerror}; can it be run by hand?") from None
        try:
            said = _followed(process, on_progress)
            status = process.wait()
        finally:
            _stop(process)
        if status != 0:
            words = _last_words(errors) or said or "it said nothing"
            raise ExternalProgramError(f"{shlex.join(command)}: exit status {status}: {words}{_remedy(words)}")


def _followed(process: "subprocess.Popen[bytes]", on_progress: Callable[[float], None]) -> str:
    """Read the program's output to its end; return the last of it."""
    assert process.stdout is not None
    done, tail = 0.0, b""
    with process.stdout as stream:
        while block := stream.read1(1 << 16):  # type: ignore[attr-defined]
            tail = (tail + block)[-LAST_WORDS_BYTES:]
            dots = max((len(found) for found in _DOTS.findall(tail)), default=0)
            if min(1.0, dots / BAR_DOTS) > done:
                done = min(1.0, dots / BAR_DOTS)
                on_progress(done)
    return _words(tail)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0, 2)
    errors.seek(max(0, errors.tell() - LAST_WORDS_BYTES))
    return _words(errors.read())


def _remedy(words: str) -> str:
    if "allow-run-as-root" not in words:
        return ""
    return "; to let Open MPI run as root give mpirun as 'mpirun --allow-run-as-root' (setting engine.mpirun)"


def _words(text: bytes) -> str:
    """The lines of some output on one line, without blank ones and bars."""
    lines = text.decode(errors="replace").replace("\r", "\n").splitlines()
    return " | ".join(line.strip() for line in lines if line.strip() and "~~(" not in line)
