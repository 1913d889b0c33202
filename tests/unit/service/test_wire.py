"""What a peer sends is a valid message, or refused with a reason that is counted."""

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cesped_stream_service.messages import Failure, Heartbeat, Hello, Lease, Ready, Result, TrainingDone
from cesped_stream_service.wire import (
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    Refusal,
    RefusalCount,
    WireError,
    decode,
    encode,
)

HELLO = Hello(role="worker", name="w1", incarnation="a1", pid=7, device="cpu")


def pose_frames(n: int = 4, k: int = 2) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        "euler_deg": rng.uniform(-180, 180, (n, 3)),
        "confidence": rng.uniform(0, 1, n),
        "top_euler_deg": rng.uniform(-180, 180, (n, k, 3)),
        "top_probability": rng.uniform(0, 1, (n, k)),
        "flag": np.arange(n, dtype=np.uint8),
        "digest": rng.integers(0, 256, (n, 16), dtype=np.uint8),
        "shift_angstrom": rng.uniform(-9, 9, (n, 2)),
        "calibrated": rng.integers(0, 2, n).astype(np.uint8),
        "above_noise": rng.normal(size=n),
        "network_euler_deg": rng.uniform(-180, 180, (n, 3)),
        "gallery_euler_deg": rng.uniform(-180, 180, (n, 3)),
        "apart_deg": rng.uniform(0, 180, n),
        "clipped": rng.integers(0, 4, n).astype(np.uint8),
    }


def result() -> Result:
    return Result(
        incarnation="a1", lease_id=3, checkpoint_id="i2s-0", proposer="image2sphere", compute_seconds=0.5, frames=()
    )


def altered(field: str, value: object, message: Any = HELLO) -> list[bytes]:
    header = json.loads(encode(message)[0])
    header[field] = value
    return [json.dumps(header).encode()]


def refusal_of(parts: list[bytes]) -> Refusal:
    with pytest.raises(WireError) as caught:
        decode(parts)
    return caught.value.reason


@pytest.mark.parametrize(
    "message",
    [
        HELLO,
        Ready(incarnation="a", particles_per_second=12.5),
        Heartbeat(incarnation="a", role="trainer", name="t", state="training", progress=4),
        Lease(
            lease_id=1,
            batch_id=2,
            batch_star="/s/batches/batch_000002.star",
            first_row=0,
            num_rows=9,
            half_sets="010010110",
            checkpoint="/c",
            checkpoint_id="i2s-1",
            expires_seconds=5.0,
        ),
    ],
)
def test_message_comes_back_equal(message: Any) -> None:
    assert decode(encode(message)) == (message, {})


def test_pose_frames_come_back_with_their_bits_and_cannot_be_written() -> None:
    frames = pose_frames()
    message, back = decode(encode(result(), frames))
    assert isinstance(message, Result)
    assert list(back) == list(frames)
    for name, array in frames.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()
        assert not back[name].flags.writeable


def test_big_endian_and_strided_arrays_travel_as_their_values() -> None:
    frames = pose_frames()
    frames["confidence"] = frames["confidence"].astype(">f8")[::-1]
    _, back = decode(encode(result(), frames))
    assert back["confidence"].dtype == np.dtype("<f8")
    np.testing.assert_array_equal(back["confidence"], frames["confidence"])


def test_result_of_no_rows_travels() -> None:
    _, back = decode(encode(result(), pose_frames(n=0)))
    assert back["top_euler_deg"].shape == (0, 2, 3)


def test_unknown_kind_version_and_fields_are_told_apart() -> None:
    assert refusal_of(altered("kind", "launch")) is Refusal.UNKNOWN_KIND
    assert refusal_of(altered("version", 1)) is Refusal.UNKNOWN_VERSION
    assert refusal_of(altered("version", 2)) is Refusal.UNKNOWN_VERSION
    assert refusal_of(altered("version", None)) is Refusal.UNKNOWN_VERSION
    assert refusal_of(altered("shell", "rm")) is Refusal.BAD_FIELDS
    assert refusal_of(altered("pid", "7")) is Refusal.BAD_FIELDS
    assert refusal_of(altered("role", "coordinator")) is Refusal.BAD_FIELDS


def test_a_rate_that_is_no_finite_number_is_refused() -> None:
    ready = Ready(incarnation="a")
    assert refusal_of(altered("particles_per_second", float("nan"), ready)) is Refusal.BAD_FIELDS
    assert refusal_of(altered("particles_per_second", float("inf"), ready)) is Refusal.BAD_FIELDS


FAILURE = Failure(incarnation="a", lease_id=1, error="E", message="bad", retry_can_help=False)
DONE = TrainingDone(incarnation="a", training_id=1, checkpoint_id="i2s-1", checkpoint="/c", seconds=1.0)


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (HELLO, "pid", 2**63),
        (HELLO, "name", "n" * 129),
        (HELLO, "incarnation", "i" * 65),
        (Heartbeat(incarnation="a", role="worker", name="w", state="", progress=0), "progress", 2**70),
        (Heartbeat(incarnation="a", role="worker", name="w", state="", progress=0), "state", "s" * 201),
        (FAILURE, "lease_id", -(2**63) - 1),
        (FAILURE, "row", 2**63),
        (FAILURE, "message", "m" * 4001),
        (DONE, "training_id", 2**70),
        (Ready(incarnation="a"), "particles_per_second", -1e308),
        (Ready(incarnation="a"), "particles_per_second", 1e308),
    ],
)
def test_numbers_and_texts_beyond_what_the_ledger_holds_are_refused(message: Any, field: str, value: object) -> None:
    assert refusal_of(altered(field, value, message)) is Refusal.BAD_FIELDS


@pytest.mark.parametrize("proposer", ["", "a b", "a\nb", "a\n", "p" * 65, "'"])
def test_a_proposer_that_is_no_star_word_is_refused(proposer: str) -> None:
    parts = encode(result(), pose_frames())
    header = json.loads(parts[0]) | {"proposer": proposer}
    assert refusal_of([json.dumps(header).encode(), *parts[1:]]) is Refusal.BAD_FIELDS


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"{", b"[1]", b"null", b"[" * 100_000, b"1" * 10_000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    assert refusal_of([data]) is Refusal.NOT_JSON


def test_no_parts_and_too_much_are_refused() -> None:
    assert refusal_of([]) is Refusal.EMPTY
    assert refusal_of([b" " * (MAX_HEADER_BYTES + 1)]) is Refusal.OVERSIZE
    assert refusal_of([encode(HELLO)[0]] + [b""] * 17) is Refusal.OVERSIZE


def test_frames_beside_a_message_that_has_none_are_refused() -> None:
    assert refusal_of([*encode(HELLO), b"1234"]) is Refusal.BAD_FRAMES
    with pytest.raises(ValueError, match="hello carries no frames"):
        encode(HELLO, pose_frames())


def with_frame(frame_name: str, **change: object) -> list[bytes]:
    parts = encode(result(), pose_frames())
    header = json.loads(parts[0])
    for frame in header["frames"]:
        if frame["name"] == frame_name:
            frame.update(change)
    return [json.dumps(header).encode(), *parts[1:]]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("euler_deg", {"shape": [4, 4]}),
        ("euler_deg", {"shape": [12]}),
        ("euler_deg", {"shape": [-4, 3]}),
        ("euler_deg", {"dtype": "<f4"}),
        ("confidence", {"shape": [5]}),
        ("top_probability", {"shape": [4, 1]}),
        ("digest", {"shape": [8, 8]}),
        ("digest", {"name": "flag"}),
        ("flag", {"name": "extra"}),
    ],
)
def test_frames_that_are_not_a_results_are_refused(name: str, change: dict[str, object]) -> None:
    assert refusal_of(with_frame(name, **change)) is Refusal.BAD_FRAMES


def test_object_arrays_are_refused_on_both_sides() -> None:
    assert refusal_of(with_frame("confidence", dtype="|O")) is Refusal.BAD_FIELDS
    with pytest.raises(ValueError, match="never travels"):
        encode(result(), {"confidence": np.array([object()])})


def test_cut_missing_and_absurdly_large_frames_are_refused() -> None:
    parts = encode(result(), pose_frames())
    assert refusal_of(parts[:-1]) is Refusal.BAD_FRAMES
    assert refusal_of([*parts[:-1], parts[-1][:-1]]) is Refusal.BAD_FRAMES
    header = json.loads(parts[0])
    rows = MAX_FRAME_BYTES // 16 + 1
    for frame in header["frames"]:
        frame["shape"][0] = rows
    assert refusal_of([json.dumps(header).encode(), *parts[1:]]) is Refusal.OVERSIZE
    for frame in header["frames"]:
        frame["shape"][0] = 0
        if frame["name"] in ("top_euler_deg", "top_probability"):
            frame["shape"][1] = 10**30
    assert refusal_of([json.dumps(header).encode(), *([b""] * 6)]) is Refusal.BAD_FRAMES


def test_a_pickle_is_never_loaded() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("a pickle was loaded",)

    bomb = pickle.dumps(Trap())
    assert refusal_of([bomb]) is Refusal.NOT_JSON
    parts = encode(result(), pose_frames())
    assert refusal_of([parts[0], *([bomb] * (len(parts) - 1))]) is Refusal.BAD_FRAMES


def test_refusals_are_counted_by_reason() -> None:
    count = RefusalCount()
    for parts in ([b"{"], [b"["], altered("kind", "x")):
        with pytest.raises(WireError) as caught:
            decode(parts)
        count.add(caught.value)
    assert count.by_reason() == {"not json": 2, "unknown kind": 1}
    assert count.total == 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(0, 10**6), st.integers(0, 255))
def test_no_bytes_make_decode_raise_anything_but_a_refusal(noise: list[bytes], place: int, value: int) -> None:
    valid = encode(result(), pose_frames(n=1, k=1))
    header = bytearray(valid[0])
    header[place % len(header)] = value
    for parts in (noise, [bytes(header), *valid[1:]], [valid[0], *noise]):
        try:
            decode(parts)
        except WireError as error:
            assert error.reason in Refusal
