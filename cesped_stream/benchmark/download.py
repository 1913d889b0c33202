"""Records over HTTP: their listings, and their files from any byte on, whatever the line does.

The only module of the library that speaks HTTP. Proxies and certificates are those that requests finds.
"""

import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from cesped_stream.benchmark.records import RecordFile, record_files
from cesped_stream.errors import InvalidRecordError, UnreachableHostError

ZENODO: Final = "https://zenodo.org"

_BUSY_CODES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_ADDRESS: Final = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)
_READ_BYTES: Final = 1 << 18
_MAX_LISTING_BYTES: Final = 1 << 24
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]+)-[0-9]+/(?:[0-9]+|\*)")


def server_answers(base_url: str = ZENODO, within_seconds: float = 3.0) -> bool:
    """Return whether a server gives any answer in this time. Never raises; looking up a name counts in the time."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(requests.exceptions.RequestException, OSError):
            requests.head(base_url, timeout=within_seconds, allow_redirects=False)
            answered.set()

    asking = threading.Thread(target=ask, name="server_answers", daemon=True)
    asking.start()
    asking.join(within_seconds)
    return answered.is_set()


@dataclass(frozen=True)
class RetryPolicy:
    """When to ask again, and how long to wait before."""

    max_attempts: int = 8
    """Failures in a row, without a new byte between them, that are too many."""
    first_attempts: int = 3
    """The same before the server has answered at all: without a network it should be said soon."""
    first_wait_seconds: float = 1.0
    """Doubled with each failure, up to `longest_wait_seconds`, times a random factor of 0.5 to 1."""
    longest_wait_seconds: float = 60.0
    longest_asked_seconds: float = 600.0
    """A server's Retry-After is honoured up to this; beyond it the download ends and says so."""
    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    """Silence on an open connection that counts as a failure."""
    wait: Callable[[float], object] = time.sleep


class _Failure(Exception):
    """One attempt failed in a way that another one may not."""

    def __init__(self, reason: str, asked_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.asked_seconds = asked_seconds


class RecordServer:
    """A server that keeps records in Zenodo's layout, under `base_url`.

    Every method raises UnreachableHostError where the server cannot be reached or stays busy, and InvalidRecordError
    for any other answer than the one asked for, at once.
    """

    def __init__(self, base_url: str = ZENODO, retries: RetryPolicy | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._host = urlsplit(self.base_url).netloc or self.base_url
        self._retries = retries or RetryPolicy()
        self._session = requests.Session()
        self._session.headers["User-Agent"] = "cesped-stream"
        # A compressed answer has other bytes than the file, at other offsets.
        self._session.headers["Accept-Encoding"] = "identity"
        self._jitter = random.Random()
        self._has_answered = False

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def __enter__(self) -> "RecordServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def files(self, record: str) -> tuple[RecordFile, ...]:
        """Return the files of a record, from `<base_url>/api/records/<record>`."""
        url = f"{self.base_url}/api/records/{record}"
        failures = 0
        while True:
            try:
                return record_files(self._listing(url), record, self.base_url)
            except _Failure as failure:
                failures += 1
                self._pause(failures, failure, url)

    def read(self, file: RecordFile, offset: int = 0) -> Iterator[bytes]:
        """Yield the bytes of a file from `offset` to its end, in order, in pieces of 256 KiB at most.

        A cut connection is taken up where it ended; a server that ignores the range is read from the start and what
        is known already is dropped.
        """
        position, failures = offset, 0
        while position < file.size:
            try:
                for chunk in self._from(file, position):
                    position += len(chunk)
                    failures = 0
                    yield chunk
            except _Failure as failure:
                failures += 1
                self._pause(failures, failure, file.urls[0])

    def _listing(self, url: str) -> Mapping[str, Any]:
        with self._answer((url,), {"Accept": "application/json"}) as response:
            body = b"".join(self._body(response, _MAX_LISTING_BYTES))
            try:
                listing = json.loads(body)
            except (ValueError, RecursionError):
                raise InvalidRecordError(f"{url}: its answer is no JSON; is this the right server?") from None
        if not isinstance(listing, Mapping):
            raise InvalidRecordError(f"{url}: its answer is no record; is this the right server?")
        return listing

    def _from(self, file: RecordFile, position: int) -> Iterator[bytes]:
        """Yield the bytes from `position` on of one connection; _Failure where it ends before the file does."""
        with self._answer(file.urls, {"Range": f"bytes={position}-"} if position else {}) as response:
            start = _start_of(response, file)
            if start > position:
                raise InvalidRecordError(f"{file.name}: asked for byte {position}, {self._host} sends from {start}")
            for chunk in self._body(response, file.size - start):
                known = min(len(chunk), max(0, position - start))
                start += len(chunk)
                if known < len(chunk):
                    yield chunk[known:]
        if start < file.size:
            raise _Failure("connection cut")

    @contextmanager
    def _answer(self, urls: Sequence[str], headers: Mapping[str, str]) -> Iterator[Any]:
        """Give the answer (200 or 206) of the first of `urls` that the server knows, its body unread."""
        response = self._get(urls[0], headers)
        for url in urls[1:]:
            if response.status_code not in (404, 410):
                break
            response.close()
            response = self._get(url, headers)
        with response:
            _check_status(response, self._host)
            yield response

    def _get(self, url: str, headers: Mapping[str, str]) -> Any:
        timeouts = (self._retries.connect_seconds, self._retries.read_seconds)
        try:
            response = self._session.get(url, headers=dict(headers), stream=True, timeout=timeouts)
        except requests.exceptions.TooManyRedirects:
            raise InvalidRecordError(f"{url[:200]}: redirects without end; is this the right server?") from None
        except _NO_ADDRESS as error:
            raise InvalidRecordError(f"{url[:200]}: no address of a server: {str(error)[:200]}") from None
        except requests.exceptions.RequestException as error:
            raise _Failure(_reason(error)) from None
        self._has_answered = True
        return response

    def _body(self, response: Any, size: int) -> Iterator[bytes]:
        """Yield at most `size` bytes of an answer as they come in, also those just before a cut."""
        left = size
        try:
            while left and (chunk := response.raw.read1(min(left, _READ_BYTES))):
                left -= len(chunk)
                yield chunk
        except (HTTPError, OSError) as error:
            raise _Failure(_reason(error)) from None

    def _pause(self, failures: int, failure: _Failure, url: str) -> None:
        policy = self._retries
        allowed = policy.max_attempts if self._has_answered else policy.first_attempts
        if failures >= allowed or failure.asked_seconds > policy.longest_asked_seconds:
            raise UnreachableHostError(self._last_words(failures, failure, url)) from None
        longest = min(policy.longest_wait_seconds, policy.first_wait_seconds * 2 ** (failures - 1))
        policy.wait(max(failure.asked_seconds, longest * self._jitter.uniform(0.5, 1.0)))

    def _last_words(self, failures: int, failure: _Failure, url: str) -> str:
        if not self._has_answered:
            return (
                f"{self._host} cannot be reached ({failure}); is this machine online, does it need a proxy "
                "(HTTPS_PROXY)? The entry DEMO needs no network"
            )
        if failure.asked_seconds > self._retries.longest_asked_seconds:
            return f"{url}: {failure}, it asks to wait {failure.asked_seconds:.0f} s; start again then, nothing is lost"
        return f"{url}: {failure}, {failures} times in a row; start again later, what is there is kept"


def _start_of(response: Any, file: RecordFile) -> int:
    """Return the offset in the file of an answer's first byte: 0 where the server ignored the range."""
    if response.status_code == 200:
        return 0
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if match is None:
        raise InvalidRecordError(f"{file.name}: a part without a Content-Range; the server is none that we know")
    return int(match[1])


def _check_status(response: Any, host: str) -> None:
    code = response.status_code
    if code in (200, 206):
        return
    if code in _BUSY_CODES:
        raise _Failure(f"{host} answers {code} {response.reason}", _asked_seconds(response.headers.get("Retry-After")))
    hint = {
        404: "was the record withdrawn?",
        410: "was the record withdrawn?",
        403: "it refuses this machine",
        416: "the file there is shorter than its listing says",
    }
    remedy = hint.get(code, "asking again would not change it")
    raise InvalidRecordError(f"{response.url}: {host} answers {code} {response.reason}; {remedy}")


def _asked_seconds(text: str | None) -> float:
    """Return the seconds that a Retry-After asks for: a number of them, or a date."""
    if not text:
        return 0.0
    try:
        return max(0.0, float(text)) if text.strip().isdigit() else _seconds_until(text)
    except (ValueError, TypeError):
        return 0.0


def _seconds_until(date: str) -> float:
    return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())


def _reason(error: BaseException) -> str:
    """Return the innermost words of a chain of HTTP errors: what went wrong, without the objects around it."""
    for kind, words in (
        (requests.exceptions.ProxyError, "the proxy does not answer"),
        (requests.exceptions.SSLError, "its certificate is not trusted"),
        (requests.exceptions.ConnectTimeout, "no answer in time"),
        (requests.exceptions.ReadTimeout, "silence"),
    ):
        if isinstance(error, kind):
            return words
    text = str(error)
    for sign, words in (
        ("NameResolution", "its name is not resolved"),
        ("Connection refused", "connection refused"),
        ("unreachable", "network unreachable"),
        ("timed out", "silence"),
    ):
        if sign in text:
            return words
    return "connection cut"
