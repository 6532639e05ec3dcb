"""The embedded MQTT broker, for networks that bring no broker of their own.

amqtt speaks MQTT; this file decides who may say what. Clients log in with their own keys
(`ledger/broker_access.py`): a device publishes only its own readings and announcements and reads
only its own watermark, an oracle node reads everything and publishes watermarks. The broker is
trusted for nothing but liveness all the same, because readings are signed end to end.

Where amqtt 0.12 is too trusting, `GuardedBroker` stands before it:

- a client that has not logged in yet must not disturb the session whose name it claims;
- a frame's size and the time until the first frame are bounded;
- whatever a broken frame makes amqtt raise ends that connection, nothing else;
- a new client gets the retained messages of its own subscriptions only (amqtt sends those of all),
  and lists that change while they are walked through are copied first.
"""

import asyncio
import logging
import time
from collections.abc import ItemsView, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from amqtt.adapters import ReaderAdapter, StreamReaderAdapter, StreamWriterAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.broker import Server as ListenerState
from amqtt.contexts import Action, BaseContext, BrokerConfig, ListenerConfig
from amqtt.errors import BrokerError, MQTTError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.devices.fleet.clients import Clients, ClientsFile, read_clients
from gridtokenx.host.config import Setting
from gridtokenx.host.logs import Logger, SparseLog
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.readiness import READY, Readiness
from gridtokenx.host.role import open_role
from gridtokenx.host.settings import ProcessSettings
from gridtokenx.ledger import broker_access

MAX_FRAME_BYTES: Final = 64 * 1024
"""A reading has about 350 bytes; nothing that we publish comes near this."""
MAX_SUBSCRIPTIONS: Final = 16
"""Different filters that one client may hold."""
FIRST_FRAME_S: Final = 5.0
"""A connection that has not logged in by then is closed."""


MQTT_5: Final = 5
_PROTOCOL_NAME: Final = b"\x00\x04MQTT"
_HEAD_BYTES: Final = 16
_UNSUPPORTED_VERSION: Final = bytes((0x20, 3, 0, 0x84, 0))
"""A CONNACK of MQTT 5: reason 132, no properties."""


class BrokerSettings(ProcessSettings, frozen=True, kw_only=True):
    """Settings of `gtx broker`."""

    host: Annotated[str, Setting("Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, Setting("Port to listen on; 0 takes a free one.", minimum=0, maximum=65_535)
    ] = 1883
    clients: Annotated[
        Path | None,
        Setting(
            "JSON file with the keys of oracle nodes and, if only these may enter, of devices."
        ),
    ] = None
    observers: Annotated[
        bool, Setting("Let clients without a login subscribe to everything, for looking on.")
    ] = False
    max_connections: Annotated[int, Setting("Connections at a time.", minimum=1)] = 4096
    certificate: Annotated[
        Path | None, Setting("PEM certificate chain; with it the broker speaks TLS only.")
    ] = None
    certificate_key: Annotated[Path | None, Setting("PEM key of the certificate.")] = None


# -- who may do what -------------------------------------------------------------------------------


class Access(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]  # amqtt is untyped
    """Logins by signature, and topics bound to them."""

    @dataclass
    class Config(BaseAuthPlugin.Config):  # type: ignore[misc]  # amqtt is untyped
        """amqtt hands plugins their settings in this form."""

        clients: str | None = None
        observers: bool = False

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        config = context.config
        assert isinstance(config, Access.Config), "amqtt builds the Config that we declare"
        self._file = ClientsFile(None if config.clients is None else Path(config.clients))
        self._observers = config.observers
        self._verifier = Ed25519Verifier()

    async def authenticate(self, *, session: Session) -> bool | None:
        """Whether a client is who it says, and its last will is one it could publish itself."""
        if session.username is None:
            named_as_client = broker_access.client_key(session.client_id) is not None
            return self._observers and not session.will_flag and not named_as_client
        key = broker_access.client_key(session.username)
        if key is None or session.client_id != session.username:
            return False
        if not self._is_admitted(self._file.read(), session.username):
            return False
        wall_ms = time.time_ns() // 1_000_000
        if not broker_access.password_is_valid(
            self._verifier, key, session.password or "", wall_ms
        ):
            return False
        return not session.will_flag or self._may_publish(session, session.will_topic or "")

    async def topic_filtering(
        self,
        *,
        session: Session | None = None,
        topic: str | None = None,
        action: Action | None = None,
    ) -> bool | None:
        """Whether a client may publish to, subscribe to, or be sent a topic."""
        if session is None or topic is None:
            return False
        if action is Action.PUBLISH:
            return self._may_publish(session, topic)
        return self._may_read(session, topic)

    def _is_admitted(self, clients: Clients, name: str) -> bool:
        if clients.devices is None or name in clients.devices:
            return True
        return name in clients.oracles or name in clients.concentrators

    def _may_publish(self, session: Session, topic: str) -> bool:
        key, clients = broker_access.client_key(session.username), self._file.clients
        if key is None:
            return False
        if session.username in clients.oracles:
            return broker_access.oracle_may_publish(topic)
        if session.username in clients.concentrators:
            return broker_access.concentrator_may_publish(key, topic)
        return broker_access.device_may_publish(key, topic)

    def _may_read(self, session: Session, topic: str) -> bool:
        key, clients = broker_access.client_key(session.username), self._file.clients
        if key is None or session.username in clients.oracles:
            return broker_access.is_ours(topic)
        if session.username in clients.concentrators:
            return broker_access.concentrator_may_read(key, topic)
        return broker_access.device_may_read(key, topic)


# -- the guard before amqtt ------------------------------------------------------------------------


class _WrongVersionError(Exception):
    """A client speaks a version that amqtt does not; amqtt lets this one through."""


class BoundedReader(StreamReaderAdapter):  # type: ignore[misc]  # amqtt is untyped
    """A stream on which a frame part beyond the limit reads as the end of the connection."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self._over = False
        self._head = b""

    @property
    def version(self) -> int:
        """The protocol level in the client's first frame; 0 before it has come."""
        name = self._head.find(_PROTOCOL_NAME)
        level = self._head[name + len(_PROTOCOL_NAME) :][:1]
        return level[0] if name >= 0 and level else 0

    async def read(self, n: int = -1) -> bytes:
        """Exactly `n` bytes."""
        self._over = self._over or not 0 <= n <= MAX_FRAME_BYTES
        if self._over:
            raise asyncio.IncompleteReadError(b"", n)
        data: bytes = await super().read(n)
        if len(self._head) < _HEAD_BYTES:
            self._head += data[:_HEAD_BYTES]
            if self.version == MQTT_5:
                raise _WrongVersionError("it speaks MQTT 5, this broker 3.1.1")
        return data

    def end(self) -> None:
        """Let every later read find the end of the connection."""
        self._over = True


class _Subscriptions(dict[str, list[tuple[Session, int]]]):
    """Subscribers by filter. Walking through it is walking through a copy.

    amqtt awaits inside such loops, and every connection that comes or goes meanwhile would break
    them.
    """

    def __iter__(self) -> Iterator[str]:
        return iter(list(super().keys()))

    def items(  # type: ignore[override]  # typeshed has a private type here
        self,
    ) -> ItemsView[str, list[tuple[Session, int]]]:
        return {topic: list(them) for topic, them in super().items()}.items()


class GuardedBroker(Broker):  # type: ignore[misc]  # amqtt is untyped
    """amqtt's broker with the guards that the file's head lists."""

    def __init__(self, config: BrokerConfig, metrics: Metrics, log: Logger) -> None:
        super().__init__(config)
        self._metrics = metrics
        self._sparse = SparseLog(log)
        self._subscriptions = _Subscriptions()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = next(iter(self._servers["default"].instance.sockets)).getsockname()[1]
        return port

    @property
    def connection_count(self) -> int:
        """Connections at present."""
        return sum(server.conn_count for server in self._servers.values())

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """One connection, from its first byte to its last."""
        try:
            await self._client_connected(
                listener_name, BoundedReader(reader), StreamWriterAdapter(writer)
            )
        except Exception as error:  # noqa: BLE001 - a client's bytes must not end the broker
            self._refuse("broken-frame", error)
        finally:
            writer.close()

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        try:
            async with asyncio.timeout(FIRST_FRAME_S):
                handler, session = await super()._initialize_client_session(
                    reader, writer, remote_address, remote_port
                )
        except Exception as error:
            if isinstance(error, _WrongVersionError):
                writer.write(_UNSUPPORTED_VERSION)
                await writer.drain()
            self._refuse("no-login", error)
            # The one kind of error after which amqtt gives the connection's place free again.
            raise MQTTError(str(error)) from error
        # Nothing is kept for a client that is away: it would cost memory without a bound, and what
        # a meter sent in vain it sends again.
        session.clean_session = True
        return handler, session

    async def _delete_session(self, client_id: str) -> None:
        """Nothing yet: amqtt calls this for a name that is only claimed; see below."""

    async def _handle_client_session(
        self,
        reader: ReaderAdapter,
        writer: WriterAdapter,
        client_session: Session,
        handler: BrokerProtocolHandler,
        server: ListenerState,
        listener_name: str,
    ) -> None:
        listener = self.listeners_config[listener_name]
        if not await self._authenticate(client_session, listener):
            self._refuse("login", client_session.username or client_session.client_id)
            handler.attach(client_session, reader, writer)
            await handler.mqtt_connack_authorize(authorize=False)
            await writer.close()
            return
        assert client_session.client_id is not None, "logging in made sure of a name"
        await self._end_previous(client_session.client_id)
        await super()._handle_client_session(
            reader, writer, client_session, handler, server, listener_name
        )

    async def _end_previous(self, client_id: str) -> None:
        previous = self._sessions.get(client_id)
        if previous is not None:
            await previous[1].handle_connection_closed()
            await self._stop_handler(previous[1])
        await super()._delete_session(client_id)

    async def _stop_handler(self, handler: BrokerProtocolHandler) -> None:
        # amqtt cancels the handler's reading task inside `asyncio.wait_for`, which in Python 3.11
        # swallows a cancellation that coincides with a frame; the task must end all the same.
        if isinstance(handler.reader, BoundedReader):
            handler.reader.end()
        await super()._stop_handler(handler)

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """Subscribe, within the limit on filters."""
        held = sum(
            any(each.client_id == session.client_id for each, _ in subscribers)
            for subscribers in self._subscriptions.values()
        )
        if held >= MAX_SUBSCRIPTIONS:
            return 0x80
        code: int = await super().add_subscription(subscription, session)
        return code

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        subscribers = self._subscriptions.get(subscription[0], [])
        if any(each.client_id == session.client_id for each, _ in subscribers):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    def _refuse(self, reason: str, detail: object) -> None:
        """Count it; tell of it, unless there is a flood of them."""
        self._metrics.count("broker_refused", reason=reason)
        self._sparse.info("refused", reason, reason=reason, detail=str(detail)[:160])


# -- the process -----------------------------------------------------------------------------------


def broker_config(settings: BrokerSettings) -> BrokerConfig:
    """Our settings in the form that amqtt wants.

    Raises:
        LocalFault: a certificate without its key, or a file that is not there or no clients file.
    """
    read_clients(settings.clients)  # refused now, rather than at the first login
    access = {
        "clients": None if settings.clients is None else str(settings.clients),
        "observers": settings.observers,
    }
    try:
        listener = ListenerConfig(
            bind=f"{settings.host}:{settings.port}",
            max_connections=settings.max_connections,
            ssl=settings.certificate is not None,
            certfile=settings.certificate,
            keyfile=settings.certificate_key,
        )
    except (ValueError, FileNotFoundError) as error:
        raise LocalFault(f"broker certificate: {error}") from None
    return BrokerConfig(
        listeners={"default": listener},
        plugins={f"{Access.__module__}.{Access.__qualname__}": access},
    )


async def run_broker(settings: BrokerSettings) -> None:
    """`gtx broker`: serve until cancelled.

    Raises:
        LocalFault: bad settings, or the address cannot be listened on.
    """
    role = open_role(settings, "broker")
    started = asyncio.get_running_loop().create_future()
    async with role.serving(lambda: _readiness(started)):
        await serve_broker(settings, role.metrics, role.log, started)


def _readiness(started: "asyncio.Future[int]") -> Readiness:
    return READY if started.done() else Readiness.unless(["the broker does not listen yet"])


async def serve_broker(
    settings: BrokerSettings,
    metrics: Metrics,
    log: Logger,
    started: "asyncio.Future[int] | None" = None,
) -> None:
    """Serve until cancelled.

    Args:
        settings: of the process.
        metrics: refusals are counted in ``broker_refused``.
        log: of the process.
        started: gets the port once the broker listens.

    Raises:
        LocalFault: bad settings, or the address cannot be listened on.
    """
    quiet_amqtt()
    broker = GuardedBroker(broker_config(settings), metrics, log)
    metrics.gauge("broker_connections", lambda: float(broker.connection_count))
    try:
        await broker.start()
    except BrokerError as error:
        raise LocalFault(f"{settings.host}:{settings.port}: {error}; choose another port") from None
    log.info("listening", host=settings.host, port=broker.port)
    if started is not None:
        started.set_result(broker.port)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await broker.shutdown()


def quiet_amqtt() -> None:
    """Silence amqtt, which logs each packet's progress; what matters is counted and logged here."""
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
