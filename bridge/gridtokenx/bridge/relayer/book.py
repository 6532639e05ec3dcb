"""What a relayer knows of one chain's interchain state, read with proofs, never guessed.

Law of the file: **the book can be thrown away at any time and read again**; so a relayer needs no
disk, and one that starts late finds everything that is open.

A record that cannot change any more (an open packet's content, an acknowledgement) is read once.
What can change is read again whenever the chain had interchain events since.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gridtokenx.bridge.relayer.edge import Proven
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import stores
from gridtokenx.interchain.clients import CertifiedHeader, ClientState
from gridtokenx.interchain.packets import Acknowledgement, Packet
from gridtokenx.interchain.stores import Channel

Numbered = tuple[str, int]
"""(client, sequence)"""


@dataclass(frozen=True, slots=True)
class Facing:
    """Whom a client of a chain faces."""

    chain: str
    """Name of the other chain in the relayer's configuration."""
    client_id: str
    """The other chain's client of this one."""


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """One chain of the relayer's configuration, from the chains' genesis files."""

    name: str
    clients: Mapping[str, Facing]
    """By client id; only routes that this relayer serves."""
    retry_ms: int
    """How long a transaction may take to be final; also its validity."""
    stagger_ms: int
    """How much longer each next relayer of a lane waits: more than a relay takes to be final."""


@dataclass(slots=True)
class Book:
    """One chain, as of the heights at which its records were read."""

    spec: ChainSpec
    head: CertifiedHeader | None = None
    """The latest final header."""
    next_set: ValidatorSet | None = None
    touched_at: int = 0
    """Height of the latest block known to have changed what can change."""
    read_at: int = -1
    """Height at which what can change was last read."""
    clients: dict[str, ClientState] = field(default_factory=dict)
    channels: dict[str, Channel] = field(default_factory=dict)
    outbox: dict[Numbered, Packet] = field(default_factory=dict)
    """Open packets by our clients."""
    sent_by: dict[Numbered, int] = field(default_factory=dict)
    """A height at which an open packet was already committed."""
    ended: set[Numbered] = field(default_factory=set)
    """Packets that have ended although an older one is open."""
    acks: dict[Numbered, Acknowledgement | None] = field(default_factory=dict)
    """What we answered to the other chains' open packets; None: not received yet."""
    acked_by: dict[Numbered, int] = field(default_factory=dict)
    """A height at which an acknowledgement was already recorded."""

    @property
    def height(self) -> int:
        """Height of the latest final header; 0 before the first."""
        return 0 if self.head is None else self.head.header.height

    @property
    def time_ms(self) -> int:
        """Time of the latest final header."""
        return 0 if self.head is None else self.head.header.timestamp_ms

    @property
    def stale(self) -> bool:
        """Whether records that can change must be read again."""
        return self.read_at < self.touched_at

    # -- what to read ------------------------------------------------------------------------------

    def changing_keys(self) -> Iterator[bytes]:
        """Everything known that may have changed."""
        for name in self.spec.clients:
            yield stores.CLIENTS.key(name)
            yield stores.CHANNELS.key(name)
        for numbered in self.outbox:
            yield stores.COMMITMENTS.key(*numbered)
        for numbered, ack in self.acks.items():
            if ack is None:
                yield stores.ACKNOWLEDGEMENTS.key(*numbered)

    def missing_keys(self, inbound: Iterator[Numbered]) -> Iterator[bytes]:
        """What was never read: packets that are open, and what we answered to those of others.

        Args:
            inbound: (our client, sequence) of every open packet that others sent us.
        """
        for name, books in self.channels.items():
            for sequence in range(books.oldest_open, books.next_sequence):
                if (name, sequence) not in self.outbox and (name, sequence) not in self.ended:
                    yield stores.OUTBOX.key(name, sequence)
        for numbered in inbound:
            if numbered not in self.acks:
                yield stores.ACKNOWLEDGEMENTS.key(*numbered)

    # -- what was read -----------------------------------------------------------------------------

    def note(
        self, height: int, values: Mapping[bytes, Proven], inbound: Iterator[Numbered]
    ) -> None:
        """Take in what was read at `height`."""
        for name in self.spec.clients:
            self._note_client(name, values)
        self._note_outbox(height, values)
        for numbered in (*inbound, *self.acks):
            found = values.get(stores.ACKNOWLEDGEMENTS.key(*numbered))
            if found is not None:
                self._note_ack(height, numbered, found.value)

    def _note_client(self, name: str, values: Mapping[bytes, Proven]) -> None:
        client = values.get(stores.CLIENTS.key(name))
        if client is not None and client.value is not None:
            self.clients[name] = stores.CLIENTS.decode(client.value)
        books = values.get(stores.CHANNELS.key(name))
        if books is not None and books.value is not None:
            self.channels[name] = stores.CHANNELS.decode(books.value)

    def _note_outbox(self, height: int, values: Mapping[bytes, Proven]) -> None:
        for name, books in self.channels.items():
            for sequence in range(books.oldest_open, books.next_sequence):
                found = values.get(stores.OUTBOX.key(name, sequence))
                if found is None:
                    continue
                if found.value is None:
                    self.ended.add((name, sequence))
                else:
                    self.outbox[name, sequence] = stores.OUTBOX.decode(found.value)
                    self.sent_by[name, sequence] = height
        for numbered in list(self.outbox):
            committed = values.get(stores.COMMITMENTS.key(*numbered))
            if committed is not None and committed.value is None:
                self._end(numbered)
        self._forget_ended()

    def _end(self, numbered: Numbered) -> None:
        del self.outbox[numbered], self.sent_by[numbered]
        self.ended.add(numbered)

    def _forget_ended(self) -> None:
        self.ended = {
            (name, sequence)
            for name, sequence in self.ended
            if sequence >= self.channels[name].oldest_open
        }

    def _note_ack(self, height: int, numbered: Numbered, value: bytes | None) -> None:
        known = self.acks.get(numbered)
        if known is not None:
            return
        if value is None:
            self.acks[numbered] = None
        else:
            self.acks[numbered] = stores.ACKNOWLEDGEMENTS.decode(value)
            self.acked_by[numbered] = height

    def forget_answers(self, open_inbound: set[Numbered]) -> None:
        """Drop what we answered to packets that have ended."""
        for numbered in [each for each in self.acks if each not in open_inbound]:
            del self.acks[numbered]
            self.acked_by.pop(numbered, None)
