"""Where a stack named in a star lies, and whether it may be read."""

import os
from collections.abc import Sequence
from pathlib import Path

from cesped_stream.errors import ForbiddenPathError, UnreachableFileError


def resolve_stack(name: str, *, star: Path, image_root: Path | None, allowed_roots: Sequence[Path]) -> Path:
    """Return the real path of a stack named in `star`, links followed; nothing is opened.

    Relative names lie under `image_root`, else in the star's folder, else in the one parent of it where they exist.
    `allowed_roots` (none: the image root, else the star's folder) must hold the result. Raises ForbiddenPathError
    (outside, or no regular file), UnreachableFileError (not there, or in several parents).
    """
    base = image_root if image_root is not None else star.absolute().parent
    roots = [os.path.realpath(root) for root in (allowed_roots or [base])]
    first = os.path.realpath(base / name)
    if not _is_under(first, roots):
        raise ForbiddenPathError(f"{star}: {name} is {first}, outside of {', '.join(roots)}; set allowed_roots")
    if _exists(first):
        return _regular(first, star, name)
    if image_root is None and not os.path.isabs(name):
        others = dict.fromkeys(os.path.realpath(parent / name) for parent in base.parents)
        present = [path for path in others if _is_under(path, roots) and _exists(path)]
        if len(present) > 1:
            raise ForbiddenPathError(f"{star}: {name} may be {' or '.join(present)}; set image_root")
        if present:
            return _regular(present[0], star, name)
    raise UnreachableFileError(f"{star}: {name} is not at {first}; has it landed, or should image_root be set?")


def _is_under(path: str, roots: Sequence[str]) -> bool:
    return any(os.path.commonpath([path, root]) == root for root in roots)


def _exists(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UnreachableFileError(f"{path}: {error.strerror}; may this user read it, is its mount there?") from None
    return True


def _regular(path: str, star: Path, name: str) -> Path:
    if not os.path.isfile(path):
        raise ForbiddenPathError(f"{star}: {name} is {path}, no regular file; give the stack itself")
    return Path(path)
