"""Structured logs: one line per event, as text for people or JSON for machines, on stderr.

structlog is imported when logging is set up, not before: it is heavy, and a tool that only reads a
key has no use for it.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TextIO

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

Form = Literal["text", "json"]
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_HIDDEN_FIELDS: Final = frozenset({"event", "level", "at"})


class Logger(Protocol):
    """What the rest of the host needs of a logger."""

    def debug(self, event: str, **fields: object) -> object:
        """For whoever looks for a bug."""
        ...

    def info(self, event: str, **fields: object) -> object:
        """For whoever watches."""
        ...

    def warning(self, event: str, **fields: object) -> object:
        """For whoever should look soon."""
        ...

    def error(self, event: str, **fields: object) -> object:
        """For whoever must act."""
        ...


class NullLogger:
    """Says nothing; for tests and for library use."""

    def debug(self, event: str, **fields: object) -> None:
        """Say nothing."""

    def info(self, event: str, **fields: object) -> None:
        """Say nothing."""

    def warning(self, event: str, **fields: object) -> None:
        """Say nothing."""

    def error(self, event: str, **fields: object) -> None:
        """Say nothing."""


def make_logger(
    form: Form = "text", level: str = "info", stream: TextIO | None = None, **context: object
) -> Logger:
    """A logger whose every line carries `context`.

    Args:
        form: ``text`` or ``json``.
        level: the least level that is written: debug, info, warning or error.
        stream: stderr if not given.
        context: fields of every line, such as the process's name.
    """
    import structlog  # noqa: PLC0415 - see the head of the file

    logger: Logger = structlog.wrap_logger(
        _Sink(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            _printable,
            structlog.processors.JSONRenderer() if form == "json" else _as_text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        cache_logger_on_first_use=True,
    ).bind(**context)
    return logger


class _Sink:
    """Where lines go. A line that cannot be written (a full disk, a closed pipe) is lost, no more."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        stream = self._stream or sys.stderr
        with contextlib.suppress(OSError):
            stream.write(line + "\n")
            stream.flush()

    debug = info = warning = error = msg


class SparseLog:
    """A logger for what strangers can cause: one line per reason, then a number per minute.

    The first line of an event and reason is written at once; what follows within a minute is counted,
    and told in one line when the minute is over ("and 41 more in the last minute"), with the fields
    of the last. Reasons beyond a bound share one line.

    Args:
        log: what is written to.
        window_s: the minute.
        clock: seconds that only grow.
    """

    REASONS: Final = 256

    def __init__(
        self, log: Logger, window_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._window_s = window_s
        self._clock = clock
        self._held: dict[tuple[str, str], _Held] = {}
        self._due = math.inf
        """When the first of their minutes is over."""

    def info(self, event: str, reason: str, /, **fields: object) -> None:
        """For whoever watches. `reason` bounds, and is not written: name it in `fields`."""
        self._say(self._log.info, event, reason, fields)

    def warning(self, event: str, reason: str, /, **fields: object) -> None:
        """For whoever should look soon."""
        self._say(self._log.warning, event, reason, fields)

    def flush(self) -> None:
        """Tell the numbers of minutes that are over; call it now and then."""
        now = self._clock()
        if now < self._due:
            return
        for key, held in tuple(self._held.items()):
            if held.until > now:
                continue
            if held.more == 0:
                del self._held[key]
                continue
            held.write(f"{key[0]}: and {held.more} more in the last minute", **held.fields)
            held.more, held.until = 0, now + self._window_s
        self._due = min((held.until for held in self._held.values()), default=math.inf)

    def _say(
        self, write: Callable[..., object], event: str, reason: str, fields: Mapping[str, object]
    ) -> None:
        self.flush()
        key = (event, reason)
        if key not in self._held and len(self._held) >= self.REASONS:
            key = (event, "")
        held = self._held.get(key)
        if held is None:
            until = self._clock() + self._window_s
            self._held[key], self._due = _Held(write, until, fields), min(self._due, until)
            write(event, **fields)
        else:
            held.more, held.fields = held.more + 1, fields


@dataclass(slots=True)
class _Held:
    """What was said of one event and reason, and is counted until when."""

    write: Callable[..., object]
    until: float
    fields: Mapping[str, object]
    more: int = 0


def _printable(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    """Bytes as hexadecimal; anything unusual as text. Long values are cut."""
    for name, value in event.items():
        if isinstance(value, bytes):
            event[name] = value.hex()
        elif not isinstance(value, str | int | float | bool | None):
            event[name] = str(value)
        if isinstance(event[name], str) and len(event[name]) > 2000:
            event[name] = event[name][:2000] + "..."
    return event


def _as_text(_logger: "WrappedLogger", _method: str, event: "EventDict") -> str:
    fields = " ".join(
        f"{name}={_quoted(value)}" for name, value in event.items() if name not in _HIDDEN_FIELDS
    )
    text = f"{event['at']} {event['level']:<7} {event['event']}"
    return f"{text}  {fields}" if fields else text


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and not any(char in ' "=' or not char.isprintable() for char in text)
    return text if plain else repr(text)
