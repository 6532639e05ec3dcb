"""`/health`, `/ready` and `/metrics` of a process, and the server that the gateway builds upon.

``/health`` answers as long as the event loop turns; ``/ready`` says whether the process does its work
(a node that keeps up, a gateway whose followers are recent): 200, or 503 with the reasons. aiohttp is
the heaviest thing in a node, so it is imported only when something is served.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.addresses import HostPort
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.readiness import Readiness

if TYPE_CHECKING:
    from aiohttp import web

MAX_BODY_BYTES: Final = 256 * 1024
SHUTDOWN_S: Final = 2.0
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

    application.router.add_get("/health", health)
    application.router.add_get("/ready", readiness)
    application.router.add_get("/metrics", numbers)


class HttpServer:
    """Serves an application until closed.

    Args:
        application: what is served.
        listen: where.
        metrics: counts ``http_malformed``: what arrived and was no HTTP request.
    """

    def __init__(
        self, application: "web.Application", listen: HostPort, metrics: Metrics | None = None
    ) -> None:
        from aiohttp import web  # noqa: PLC0415 - see the head of the file

        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=SHUTDOWN_S,
            logger=_server_logger(metrics or Metrics()),
        )
        self._listen = listen

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            LocalFault: the address cannot be had.
        """
        from aiohttp import web  # noqa: PLC0415 - see the head of the file

        await self._runner.setup()
        site = web.TCPSite(self._runner, self._listen.host, self._listen.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise LocalFault(
                f"cannot listen on {self._listen}: {error.strerror or error}"
            ) from None

    async def close(self) -> None:
        """Stop listening, and end what is open."""
        await self._runner.cleanup()


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
