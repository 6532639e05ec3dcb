"""One HTTP source of a feed: polled with a time limit, a rate limit and its own credentials.

Law of the file: **a failing source costs its oracle an observation, never more.** Whatever a server
answers, however slowly, ends in a value or in a counted `RemoteFault`, within the time limit and the
size limit; a source that asks for patience (429, 503) gets it.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

import aiohttp

from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.host.config import Setting, Settings
from gridtokenx.oracle.feeds.mapping import MAX_DOCUMENT_BYTES, Mapping, extract

LONGEST_WAIT_S: Final = 300.0
"""A server may ask for this much patience, not more."""
_PATIENCE: Final = frozenset({429, 503})


class SourceSettings(Settings, frozen=True, kw_only=True):
    """One source of one feed."""

    name: Annotated[str, Setting("Name of the source, recorded with each observation.")] = ""
    url: Annotated[str, Setting("Address to poll: http:// or https://.")] = ""
    format: Annotated[
        Literal["json", "csv", "xml", "text"], Setting("Format of what it answers.")
    ] = "json"
    value: Annotated[
        str,
        Setting(
            "Where the number stands: a path (json, xml), a column (csv), or a regular expression "
            "with one group (text)."
        ),
    ] = ""
    time: Annotated[str, Setting("For csv: the column of times from which a row holds.")] = ""
    delimiter: Annotated[str, Setting("For csv: what separates columns.")] = ","
    units: Annotated[
        str, Setting("Units of the feed per unit of the source, a decimal number.")
    ] = "1"
    auth_header: Annotated[
        str | None, Setting("Header that carries the credential, such as Authorization.")
    ] = None
    auth_value: Annotated[
        str | None, Setting("The credential, such as `Bearer ...`.", secret=True)
    ] = None
    timeout_ms: Annotated[
        int, Setting("Longest wait for an answer.", unit="ms", minimum=100, maximum=60_000)
    ] = 2_000
    poll_ms: Annotated[
        int,
        Setting(
            "Rate limit: shortest time between two polls; in between, the last value holds.",
            unit="ms",
            minimum=0,
            maximum=3_600_000,
        ),
    ] = 1_000
    max_age_ms: Annotated[
        int, Setting("A value older than this is not reported any more.", unit="ms", minimum=1)
    ] = 60_000

    @property
    def mapping(self) -> Mapping:
        """Where the value stands."""
        return Mapping(
            format=self.format,
            value=self.value,
            time=self.time,
            delimiter=self.delimiter,
            units=self.units,
        )

    def check(self) -> None:
        """Refuse settings that could not work.

        Raises:
            LocalFault: says which, and what is allowed.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LocalFault(f"source url {self.url!r} is no http:// or https:// address")
        if not 1 <= len(self.name) <= 64:
            raise LocalFault(f"source name {self.name!r}: give it 1 to 64 characters")
        if (self.auth_header is None) != (self.auth_value is None):
            raise LocalFault("source auth_header and auth_value: give both or neither")
        self.mapping.check()


class SourceFault(RemoteFault):
    """A source did not answer with a value; `reason` says why."""


class HttpSource:
    """A source as an async context manager.

    Args:
        settings: of the source.
        grid_ms: grid time now, for tables of times.
    """

    def __init__(self, settings: SourceSettings, grid_ms: Callable[[], int]) -> None:
        settings.check()
        self._settings: Final = settings
        self._grid_ms: Final = grid_ms
        self._session: aiohttp.ClientSession | None = None
        self._value: int | None = None
        self._polled_s = float("-inf")
        self._read_s = float("-inf")
        self._not_before_s = float("-inf")

    async def __aenter__(self) -> Self:
        settings = self._settings
        headers = {"User-Agent": "gridtokenx-oracle"}
        if settings.auth_header is not None and settings.auth_value is not None:
            headers[settings.auth_header] = settings.auth_value
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=settings.timeout_ms / 1000),
            connector=aiohttp.TCPConnector(limit=1),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def name(self) -> str:
        """For the record of an observation."""
        return self._settings.name

    async def read(self) -> int:
        """The value now, in units of the feed.

        Raises:
            RemoteFault: no value that is young enough, and why.
        """
        now_s = asyncio.get_running_loop().time()
        allowed_s = max(self._polled_s + self._settings.poll_ms / 1000, self._not_before_s)
        if now_s >= allowed_s:
            self._polled_s = now_s
            self._value = extract(self._settings.mapping, await self._fetch(), self._grid_ms())
            self._read_s = now_s
        if self._value is None or now_s - self._read_s > self._settings.max_age_ms / 1000:
            raise SourceFault("source-stale", f"{self.name}: no value that is young enough")
        return self._value

    async def _fetch(self) -> bytes:
        if self._session is None:
            raise AssertionError("read inside `async with`")
        try:
            async with self._session.get(self._settings.url, allow_redirects=False) as answer:
                if answer.status in _PATIENCE:
                    self._wait(answer.headers.get("Retry-After", ""))
                if answer.status != 200:
                    raise SourceFault("source-status", f"{self.name}: HTTP {answer.status}")
                return await _bounded_body(answer)
        except TimeoutError:
            raise SourceFault("source-timeout", f"{self.name}: no answer in time") from None
        except aiohttp.ClientError as error:
            raise SourceFault("source-unreachable", f"{self.name}: {error}") from None

    def _wait(self, retry_after: str) -> None:
        now_s = asyncio.get_running_loop().time()
        wait_s = min(max(_seconds(retry_after), 0.0), LONGEST_WAIT_S)
        self._not_before_s = now_s + wait_s


async def _bounded_body(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in answer.content.iter_chunked(16 * 1024):
        body += part
        if len(body) > MAX_DOCUMENT_BYTES:
            raise SourceFault("source-too-large", f"more than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(body)


def _seconds(retry_after: str) -> float:
    """RFC 9110 §10.2.3: seconds, or a date; nothing useful means a minute."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return 60.0
    if moment.tzinfo is None:
        return 60.0
    return (moment - datetime.now(UTC)).total_seconds()
