"""Messages on the wire: [header JSON, frame, frame, ...], encoded and checked. No pickle.

Whatever a peer sends is either a valid message with the frames that its header states, or refused with a reason
that the caller counts.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cesped_stream.errors import PermanentError

from .messages import MESSAGE, PROTOCOL_VERSION, AnyMessage, FrameHeader, Result

Frames = Mapping[str, NDArray[Any]]

MAX_HEADER_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 28
MAX_FRAMES = 16

_ALLOWED_DTYPES = ("<f8", "<f4", "<i8", "<i4", "|u1", "|i1")
_RESULT_FRAMES: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "euler_deg": ("<f8", ("n", 3)),
    "confidence": ("<f8", ("n",)),
    "top_euler_deg": ("<f8", ("n", "k", 3)),
    "top_probability": ("<f8", ("n", "k")),
    "flag": ("|u1", ("n",)),
    "digest": ("|u1", ("n", 16)),
    "shift_angstrom": ("<f8", ("n", 2)),
    "calibrated": ("|u1", ("n",)),
    "above_noise": ("<f8", ("n",)),
    "network_euler_deg": ("<f8", ("n", 3)),
    "gallery_euler_deg": ("<f8", ("n", 3)),
    "apart_deg": ("<f8", ("n",)),
    "clipped": ("|u1", ("n",)),
}


class Refusal(StrEnum):
    """Why a message was refused."""

    EMPTY = "empty"
    OVERSIZE = "oversize"
    NOT_JSON = "not json"
    UNKNOWN_VERSION = "unknown version"
    UNKNOWN_KIND = "unknown kind"
    BAD_FIELDS = "bad fields"
    BAD_FRAMES = "bad frames"


class WireError(PermanentError):
    """A message that is not one of ours; `reason` is what to count it under."""

    def __init__(self, reason: Refusal, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason


class RefusalCount:
    """How many messages a socket refused, by reason."""

    def __init__(self) -> None:
        self._count: Counter[Refusal] = Counter()

    def add(self, error: WireError) -> None:
        self._count[error.reason] += 1

    @property
    def total(self) -> int:
        return self._count.total()

    def by_reason(self) -> dict[str, int]:
        return {str(reason): count for reason, count in sorted(self._count.items())}


def frame_headers(frames: Frames) -> tuple[FrameHeader, ...]:
    """Return the headers that state these arrays' names, dtypes (little-endian) and shapes, in order."""
    headers = []
    for name, array in frames.items():
        dtype = array.dtype.newbyteorder("<").str
        if dtype not in _ALLOWED_DTYPES:
            raise ValueError(f"frame {name}: dtype {array.dtype} never travels; allowed: {_ALLOWED_DTYPES}")
        headers.append(FrameHeader.model_validate({"name": name, "dtype": dtype, "shape": array.shape}))
    return tuple(headers)


def encode(message: AnyMessage, frames: Frames | None = None) -> list[bytes]:
    """Return the parts of a multipart message; a Result's header is made to state the given frames."""
    frames = frames or {}
    if isinstance(message, Result):
        message = message.model_copy(update={"frames": frame_headers(frames)})
    elif frames:
        raise ValueError(f"a {message.kind} carries no frames")
    parts = [message.model_dump_json().encode()]
    for array in frames.values():
        parts.append(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return parts


def decode(parts: Sequence[bytes]) -> tuple[AnyMessage, dict[str, NDArray[Any]]]:
    """Return the message and its frames (read-only arrays); WireError where anything is not as stated."""
    if not parts:
        raise WireError(Refusal.EMPTY, "no header")
    if len(parts[0]) > MAX_HEADER_BYTES or len(parts) > 1 + MAX_FRAMES:
        raise WireError(Refusal.OVERSIZE, f"header of {len(parts[0])} bytes and {len(parts) - 1} frames")
    message = _decode_header(parts[0])
    headers = message.frames if isinstance(message, Result) else ()
    if len(headers) != len(parts) - 1:
        raise WireError(Refusal.BAD_FRAMES, f"header states {len(headers)} frames, {len(parts) - 1} came")
    if isinstance(message, Result):
        _check_result(headers)
    return message, {h.name: _decode_frame(h, part) for h, part in zip(headers, parts[1:], strict=True)}


def _decode_header(data: bytes) -> AnyMessage:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError):
        raise WireError(Refusal.NOT_JSON, f"header begins {data[:40]!r}") from None
    if not isinstance(header, dict):
        raise WireError(Refusal.NOT_JSON, f"header is a {type(header).__name__}, not an object")
    if header.get("version") != PROTOCOL_VERSION:
        raise WireError(Refusal.UNKNOWN_VERSION, f"got {header.get('version')!r}, this side speaks {PROTOCOL_VERSION}")
    try:
        return MESSAGE.validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        unknown_kind = first["type"] in ("union_tag_invalid", "union_tag_not_found")
        where = ".".join(map(str, first["loc"])) or "kind"
        raise WireError(
            Refusal.UNKNOWN_KIND if unknown_kind else Refusal.BAD_FIELDS, f"{where}: {first['msg']}"
        ) from None


def _check_result(headers: Sequence[FrameHeader]) -> None:
    """Raise unless the frames are exactly a Result's, and agree on the number of rows and of top poses."""
    stated = {h.name: h for h in headers}
    if len(stated) != len(headers) or set(stated) != set(_RESULT_FRAMES):
        raise WireError(Refusal.BAD_FRAMES, f"a result has {sorted(_RESULT_FRAMES)}, got {sorted(stated)}")
    size: dict[str, int] = {}
    for name, (dtype, axes) in _RESULT_FRAMES.items():
        header = stated[name]
        expected = tuple(size.get(a, a) if isinstance(a, str) else a for a in axes)
        fits = len(header.shape) == len(axes) and all(
            size.setdefault(axis, length) == length if isinstance(axis, str) else axis == length
            for axis, length in zip(axes, header.shape, strict=True)
        )
        if header.dtype != dtype or not fits:
            raise WireError(
                Refusal.BAD_FRAMES, f"{name}: got {header.dtype} {header.shape}, expected {dtype} {expected}"
            )


def _decode_frame(header: FrameHeader, data: bytes) -> NDArray[Any]:
    dtype = np.dtype(header.dtype)
    if not all(0 <= length <= MAX_FRAME_BYTES for length in header.shape):
        raise WireError(Refusal.BAD_FRAMES, f"{header.name}: shape {header.shape}")
    stated = prod(header.shape) * dtype.itemsize
    if stated > MAX_FRAME_BYTES:
        raise WireError(Refusal.OVERSIZE, f"{header.name}: {stated} bytes, limit {MAX_FRAME_BYTES}")
    if stated != len(data):
        raise WireError(Refusal.BAD_FRAMES, f"{header.name}: {stated} bytes stated, {len(data)} came")
    return np.frombuffer(data, dtype).reshape(header.shape)
