"""A message broker in virtual time: the embedded one's rules over simulated connections.

It keeps retained messages while it lives, and no sessions: what is published while a client is away
is lost to that client. So it is the least that the network must do with (docs/devices.md).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Final, Self, cast

import aiomqtt
from msgspec import Meta

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.machine import NodeId
from gridtokenx.host.broker_address import BrokerAddress
from gridtokenx.lab.sim.testnet.processes import End, Life, settle

PORT: Final = "mqtt"
ACKNOWLEDGED_S: Final = 10.0
Text = Annotated[str, Meta(max_length=256)]
Payload = Annotated[bytes, Meta(max_length=65_536)]


class Connect(Wire, frozen=True, tag="sim.mqtt.connect"):
    """Who connects, and what to publish when it is lost."""

    name: Text
    will_topic: Text
    will: Payload


class Subscribe(Wire, frozen=True, tag="sim.mqtt.subscribe"):
    """Everything that matches a filter, please."""

    number: int
    filter: Text


class Publish(Wire, frozen=True, tag="sim.mqtt.publish"):
    """A message; from the broker to a client its number is 0."""

    number: int
    topic: Text
    payload: Payload
    retain: bool


class Acknowledge(Wire, frozen=True, tag="sim.mqtt.acknowledge"):
    """A subscription or message was taken."""

    number: int


Packet = Connect | Subscribe | Publish | Acknowledge


@dataclass(slots=True)
class _Client:
    end: End
    will: tuple[str, bytes] | None = None
    filters: tuple[str, ...] = ()


class SimulatedBroker:
    """One life of the broker."""

    def __init__(self, life: Life) -> None:
        self._clients: Final[dict[End, _Client]] = {}
        self._retained: Final[dict[str, bytes]] = {}
        life.listeners[PORT] = self._accept

    def _accept(self, end: End) -> None:
        client = self._clients[end] = _Client(end)
        end.on_frame = lambda body: self._take(client, body)
        end.on_closed = lambda _reason: self._lost(client)

    def _take(self, client: _Client, body: bytes) -> None:
        try:
            packet = read(body)
        except RemoteFault as fault:
            client.end.close(str(fault))
            self._lost(client)
            return
        match packet:
            case Connect(_, will_topic, will):
                client.will = (will_topic, will) if will_topic else None
            case Subscribe(number, filter_):
                client.filters = (*client.filters, filter_)
                client.end.send(encode(Acknowledge(number=number)))
                for topic, payload in self._retained.items():
                    if matches(filter_, topic):
                        self._forward(client, topic, payload)
            case Publish(number, topic, payload, retain):
                client.end.send(encode(Acknowledge(number=number)))
                self._publish(topic, payload, retain=retain)

    def _publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if retain:
            self._retained[topic] = payload
        for client in self._clients.values():
            if any(matches(each, topic) for each in client.filters):
                self._forward(client, topic, payload)

    def _forward(self, client: _Client, topic: str, payload: bytes) -> None:
        client.end.send(encode(Publish(number=0, topic=topic, payload=payload, retain=False)))

    def _lost(self, client: _Client) -> None:
        self._clients.pop(client.end, None)
        if client.will is not None:
            self._publish(*client.will, retain=True)


def read(body: bytes) -> Packet:
    """A packet; both ends are this file's."""
    packet: Packet = decode(body, Packet)  # type: ignore[arg-type]  # a union is a type
    return packet


def matches(filter_: str, topic: str) -> bool:
    """MQTT 4.7: whether a topic matches a filter with ``+`` and a final ``#``."""
    wanted, found = filter_.split("/"), topic.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(found) or level not in ("+", found[position]):
            return False
    return len(wanted) == len(found)


@dataclass(frozen=True, slots=True)
class Message:
    """A message as a client's iterator gives it."""

    topic: str
    payload: bytes


class SimulatedClient:
    """A client's connection; as much of `aiomqtt.Client` as the project uses.

    Args:
        life: of the client.
        broker: node id.
        name: of the client.
        queued: messages beyond these are dropped.
        will: published when it is lost.
    """

    def __init__(
        self, life: Life, broker: NodeId, name: str, queued: int, will: aiomqtt.Will | None
    ) -> None:
        self._life: Final = life
        self._broker: Final = broker
        self._name: Final = name
        self._will: Final = will
        self._inbox: Final[deque[Message]] = deque(maxlen=queued)
        self._arrived: Final = asyncio.Event()
        self._waiting: Final[dict[int, asyncio.Future[None]]] = {}
        self._last = 0
        self._end: End

    async def __aenter__(self) -> Self:
        try:
            self._end = await self._life.wires.dial(self._life, self._broker, PORT)
        except RemoteFault as fault:
            raise aiomqtt.MqttError(str(fault)) from None
        self._end.on_frame, self._end.on_closed = self._take, self._lost
        will = self._will
        topic, payload = ("", b"") if will is None else (will.topic, cast("bytes", will.payload))
        self._end.send(encode(Connect(name=self._name, will_topic=topic, will=payload)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.close("done")

    async def subscribe(self, topic: str, qos: int = 0) -> None:  # noqa: ARG002 - always once or more
        """Ask for what matches a filter, and wait until the broker has it."""
        await self._send(lambda number: Subscribe(number=number, filter=topic))

    async def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,  # noqa: ARG002 - always once or more
        retain: bool = False,  # noqa: FBT001, FBT002 - as in aiomqtt
    ) -> None:
        """Publish, and wait until the broker has it."""
        await self._send(
            lambda number: Publish(number=number, topic=topic, payload=payload, retain=retain)
        )

    @property
    async def messages(self) -> AsyncIterator[Message]:
        """What comes, until the connection is lost: then `MqttError`."""
        while True:
            while self._inbox:
                yield self._inbox.popleft()
            if self._end.closed:
                raise aiomqtt.MqttError(self._end.closed)
            self._arrived.clear()
            await self._arrived.wait()

    async def _send(self, packet: Callable[[int], Packet]) -> None:
        self._last += 1
        number, taken = self._last, self._life.loop.create_future()
        self._waiting[number] = taken
        try:
            if not self._end.send(encode(packet(number))):
                raise aiomqtt.MqttError(self._end.closed)
            async with asyncio.timeout(ACKNOWLEDGED_S):
                await taken
        except TimeoutError:
            raise aiomqtt.MqttError("the broker does not acknowledge") from None
        finally:
            del self._waiting[number]

    def _take(self, body: bytes) -> None:
        try:
            packet = read(body)
        except RemoteFault as fault:
            self._end.close(str(fault))
            self._lost(str(fault))
            return
        match packet:
            case Acknowledge(number):
                if number in self._waiting:
                    settle(self._waiting[number], None)
            case Publish(_, topic, payload, _):
                self._inbox.append(Message(topic, payload))
                self._arrived.set()

    def _lost(self, reason: str) -> None:
        self._arrived.set()
        for taken in self._waiting.values():
            if not taken.done():
                taken.set_exception(aiomqtt.MqttError(reason))


def broker_for(life: Life, broker: NodeId) -> BrokerAddress:
    """How a life reaches the broker; see `BrokerAddress.opener`."""

    def open_(name: str, queued: int, will: aiomqtt.Will | None) -> aiomqtt.Client:
        return cast("aiomqtt.Client", SimulatedClient(life, broker, name, queued, will))

    return BrokerAddress("broker", 0, opener=open_)
