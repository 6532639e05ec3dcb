"""`/health`, `/ready` and `/metrics` of a process, and the server that the gateway builds upon.

``/health`` answers as long as the event loop turns; ``/ready`` says whether the process does its work
(a node that keeps up, a gateway whose followers are recent): 200, or 503 with the reasons. aiohttp is
the heaviest thing in a node, so it is imported only when something is served.

Law of the server: **a newcomer always gets in.** Connections are bounded; when there are too many, the
one that has waited longest for its request to be complete is closed, and none may wait long. So slow
or silent connections can neither fill memory nor keep `/health` from being answered.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, cast

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.addresses import HostPort
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.readiness import Readiness

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Middleware

MAX_BODY_BYTES: Final = 256 * 1024
SHUTDOWN_S: Final = 2.0
LINGER_S: Final = 2.0
"""For what is left of a body after its request was answered."""
MAX_CONNECTIONS: Final = 256
REQUEST_S: Final = 10.0
"""From the beginning of a connection, or the end of its last request, until all headers are there."""
_BACKLOG: Final = 128
PROMETHEUS_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


def new_application() -> "web.Application":
    """An application that bounds what a request may cost."""
    from aiohttp import web  # noqa: PLC0415 - see the head of the file

    return web.Application(client_max_size=MAX_BODY_BYTES)


def add_health(
    application: "web.Application",
    metrics: Metrics,
    ready: Callable[[], Readiness],
    facts: Callable[[], Mapping[str, object]] = dict,
) -> None:
    """Add the three routes to an application.

    Args:
        application: what serves them.
        metrics: what ``/metrics`` shows.
        ready: whether the process does its work, and if not, why.
        facts: what ``/health`` and ``/ready`` tell besides.
    """
    from aiohttp import web  # noqa: PLC0415 - see the head of the file

    def answer(status: int, found: Mapping[str, object]) -> web.Response:
        body = msgspec.json.encode({**found, **facts()})
        return web.Response(body=body, status=status, content_type="application/json")

    async def health(_request: web.Request) -> web.Response:
        return answer(200, {"status": "ok"})

    async def readiness(_request: web.Request) -> web.Response:
        now = ready()
        return answer(200 if now.ready else 503, {"ready": now.ready, "reasons": now.reasons})

    async def numbers(_request: web.Request) -> web.Response:
        headers = {"Content-Type": PROMETHEUS_TEXT}
        return web.Response(body=metrics.render(), headers=headers)

    metrics.gauge("ready", lambda: float(ready().ready))
    metrics.describe("ready", "1 while /ready answers 200.")
    application.router.add_get("/health", health)
    application.router.add_get("/ready", readiness)
    application.router.add_get("/metrics", numbers)


class HttpServer:
    """Serves an application until closed.

    Args:
        application: what is served.
        listen: where.
        metrics: counts ``http_malformed`` (what arrived and was no HTTP request) and
            ``http_turned_out`` (connections that were closed).
    """

    def __init__(
        self, application: "web.Application", listen: HostPort, metrics: Metrics | None = None
    ) -> None:
        from aiohttp import web  # noqa: PLC0415 - see the head of the file

        metrics = metrics or Metrics()
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=SHUTDOWN_S,
            lingering_time=LINGER_S,
            keepalive_timeout=REQUEST_S,
            logger=_server_logger(metrics),
        )
        self._door = _Door(metrics)
        application.middlewares.insert(0, self._door.middleware())
        self._listen = listen
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            LocalFault: the address cannot be had.
        """
        await self._runner.setup()
        handlers = self._runner.server
        assert handlers is not None, "set up"
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self._door, handlers()),
                self._listen.host,
                self._listen.port,
                backlog=_BACKLOG,
            )
        except OSError as error:
            await self._runner.cleanup()
            raise LocalFault(
                f"cannot listen on {self._listen}: {error.strerror or error}"
            ) from None

    async def close(self) -> None:
        """Stop listening, and end what is open."""
        if self._server is not None:
            self._server.close()
        self._door.close()
        await self._runner.cleanup()


class _Door:
    """The open connections of a server: how many, and which of them wait for a request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._open: dict[asyncio.Protocol, _Connection] = {}
        self._waiting: dict[_Connection, asyncio.TimerHandle] = {}
        metrics.gauge("http_connections", lambda: len(self._open))

    def middleware(self) -> "Middleware":
        """Knows when a request begins (its headers are there) and when it is answered."""
        from aiohttp import web  # noqa: PLC0415 - see the head of the file

        @web.middleware
        async def around(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            connection = self._open.get(request.protocol)
            self._stop_waiting(connection)
            try:
                return await handler(request)
            finally:
                if connection is not None and request.protocol in self._open:
                    self._wait(connection)

        return around

    def enter(self, connection: "_Connection") -> None:
        """A connection begins; another makes way if there are too many."""
        if len(self._open) >= MAX_CONNECTIONS:
            first = next(iter(self._waiting), next(iter(self._open.values())))
            self._turn_out(first, "too-many")
        self._open[connection.handler] = connection
        self._wait(connection)

    def leave(self, connection: "_Connection") -> None:
        """A connection has ended."""
        self._stop_waiting(connection)
        self._open.pop(connection.handler, None)

    def close(self) -> None:
        """No timer outlives the server."""
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()

    def _wait(self, connection: "_Connection") -> None:
        loop = asyncio.get_running_loop()
        self._stop_waiting(connection)
        self._waiting[connection] = loop.call_later(
            REQUEST_S, self._turn_out, connection, "too-slow"
        )

    def _stop_waiting(self, connection: "_Connection | None") -> None:
        timer = self._waiting.pop(connection, None) if connection is not None else None
        if timer is not None:
            timer.cancel()

    def _turn_out(self, connection: "_Connection", reason: str) -> None:
        self._metrics.count("http_turned_out", reason=reason)
        self.leave(connection)
        connection.transport.abort()


class _Connection(asyncio.Protocol):
    """Between a socket and aiohttp's handler of it: tells the door of its beginning and end."""

    def __init__(self, door: _Door, handler: "web.RequestHandler") -> None:
        self._door = door
        self.handler = handler
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass
        self._door.enter(self)
        self.handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.handler.data_received(data)

    def eof_received(self) -> None:
        self.handler.eof_received()

    def pause_writing(self) -> None:
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        self.handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.leave(self)
        self.handler.connection_lost(exc)


def _server_logger(metrics: Metrics) -> logging.Logger:
    """The server's own log, but for what strangers could fill it with: that is only counted."""
    from aiohttp.http_exceptions import HttpProcessingError  # noqa: PLC0415 - see the head
    from aiohttp.log import server_logger  # noqa: PLC0415 - see the head

    def keep(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        metrics.count("http_malformed", reason=type(error).__name__)
        return False

    logger = logging.Logger("gridtokenx.http", logging.DEBUG)  # noqa: LOG001 - one per server
    logger.parent = server_logger
    logger.addFilter(keep)
    return logger
