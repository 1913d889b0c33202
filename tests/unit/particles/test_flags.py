"""Flags are what messages carry and stars say."""

from cesped_stream.particles.flags import ImageFlag


def test_flags_keep_their_numbers_and_texts() -> None:
    assert {flag.value: flag.status for flag in ImageFlag} == {
        0: "ok",
        1: "nan",
        2: "inf",
        3: "constant",
        4: "unreadable",
        5: "in_reference",
        6: "no_ctf",
        7: "failed",
    }
