"""What a role's process has before it does anything of its own: log, numbers, clock, keys, HTTP."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gridtokenx.host.addresses import HostPort
from gridtokenx.host.clock import NetworkClock, read_clock_file
from gridtokenx.host.http import HttpServer, add_health, new_application
from gridtokenx.host.keyfile import unlock
from gridtokenx.host.logs import Logger, make_logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.readiness import Readiness
from gridtokenx.host.settings import KeyedSettings, ProcessSettings


@dataclass(frozen=True, slots=True)
class Role:
    """A process's own things."""

    log: Logger
    metrics: Metrics
    clock: NetworkClock
    http: HostPort | None

    @asynccontextmanager
    async def serving(
        self, ready: Callable[[], Readiness], facts: Callable[[], Mapping[str, object]] = dict
    ) -> AsyncIterator[None]:
        """Answer over HTTP while the context lasts.

        Args:
            ready: whether the process does its work, and if not, why.
            facts: what ``/health`` and ``/ready`` tell besides.
        """
        if self.http is None:
            yield
            return
        application = new_application()
        add_health(application, self.metrics, ready, facts)
        server = HttpServer(application, self.http, self.metrics)
        await server.start()
        self.log.info("http", port=server.port)
        try:
            yield
        finally:
            await server.close()


def open_role(settings: ProcessSettings, name: str) -> Role:
    """Set up what every process has.

    Raises:
        LocalFault: an unusable address, or no clock file where one is named.
    """
    filed_ms = 0 if settings.clock_file is None else read_clock_file(settings.clock_file)
    return Role(
        log=make_logger(settings.log_format, settings.log_level, role=name),
        metrics=Metrics(role=name),
        clock=NetworkClock(settings.clock_offset_ms + filed_ms),
        http=None if settings.http is None else HostPort.parse(settings.http),
    )


def open_key_seed(settings: KeyedSettings) -> bytes:
    """The secret seed of the process's identity.

    Raises:
        LocalFault: no such key, or no password that opens it.
    """
    return unlock(settings.keys, settings.keys_password_file, os.environ).seed(settings.key)
