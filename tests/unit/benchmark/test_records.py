"""A hostile listing is refused with InvalidRecordError, whatever is in it."""

from typing import Any

import pytest

from cesped_stream.benchmark.download import RecordServer, RetryPolicy
from cesped_stream.benchmark.records import record_files
from cesped_stream.errors import InvalidRecordError

BASE = "http://127.0.0.1:9"
FILE = {"key": "a.star", "size": 3, "checksum": "md5:" + "0" * 32}


@pytest.mark.parametrize(
    "files",
    [
        [7],
        ["a.star"],
        [None],
        "a.star",
        [FILE | {"size": True}],
        [FILE | {"size": 2**50 + 1}],
        [FILE | {"size": -1}],
        [FILE | {"size": "3"}],
        [FILE | {"key": ["a.star"]}],
        [FILE | {"checksum": {"md5": "0"}}],
    ],
)
def test_listing_of_wrong_types_is_no_record(files: Any) -> None:
    with pytest.raises(InvalidRecordError):
        record_files({"files": files}, "1", BASE)


@pytest.mark.parametrize("link", ["ftp://127.0.0.1/a", "file:///etc/passwd", "/a", 7, ["http://127.0.0.1/a"], None])
@pytest.mark.parametrize("whole", [False, True])
def test_link_that_is_no_http_gives_way_to_the_address_of_the_record(link: Any, whole: bool) -> None:
    (file,) = record_files({"files": [FILE | {"links": link if whole else {"self": link}}]}, "1", BASE)
    assert file.urls == (f"{BASE}/records/1/files/a.star",)


@pytest.mark.parametrize("base", ["ftp://127.0.0.1", "no-scheme"])
def test_server_without_an_http_address_is_refused_at_once(base: str) -> None:
    waits: list[float] = []
    with RecordServer(base, RetryPolicy(wait=waits.append)) as server, pytest.raises(InvalidRecordError):
        server.files("1")
    assert waits == []
