"""The interchain module: packets out, packets in, and the light clients that judge them.

Law of the file: **nothing that another chain is said to have done has an effect here before it was
proved here**, and every packet ends exactly once. The records are drawn in `packets.py`, the calls
in `calls.py`, the rules of belief in `clients.py`, what members decide in `council.py`.

::

    sender                            receiver
    send -> commitment
                 -- ReceivePacket -->  receipt, app.on_receive, acknowledgement
    commitment ends  <-- AcknowledgePacket --     (app.on_acknowledge)
    commitment ends  <-- TimeoutPacket --         (app.on_timeout; no receipt, time > timeout)

Several relayers race by design. So a call whose work is already done succeeds and does nothing (its
relayer is not punished for being second), and the pool refuses it before it costs anything
(`is_redundant`). Timeouts are decided by the receiver's block time alone: a block at the timeout
may still receive, a header above it proves that no block will.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from msgspec import structs

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Ed25519Verifier, Verifier
from gridtokenx.core.state_tree import StateProof, verify_absence, verify_membership
from gridtokenx.core.units import AmountError
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import calls, clients, packets, stores
from gridtokenx.interchain.packets import Acknowledgement, Delivered, Packet, Refused
from gridtokenx.interchain.stores import Channel
from gridtokenx.ledger.runtime import (
    NOBODY,
    CallFailed,
    Context,
    InvalidTransaction,
    Module,
    handles,
)
from gridtokenx.ledger.state import State, store_key

MAX_TIMEOUT_MS: Final = 7 * 24 * 3_600_000
"""No packet stays open longer, so that what it holds is freed within a known time."""
MAX_OPEN_PER_PORT: Final = 512
"""Open packets of one app by one client: one busy app cannot crowd out the others."""
MAX_SPREAD: Final = 4_096
"""Most packets between the oldest open one and the next: bounds a relayer's work to rebuild."""


class App(Protocol):
    """What handles the packets of one port on one chain."""

    @property
    def port(self) -> str:
        """The port's name, the same on both chains."""
        ...

    def on_receive(self, ctx: Context, packet: Packet) -> bytes:
        """Act on a proven packet; the result travels home in the acknowledgement.

        `ctx.sender` is nobody: that a relayer carried the packet gives it no say.

        Raises:
            CallFailed: refuse it; everything done here is undone, and the sender's app is told.
            RemoteFault: the payload is not one of this port's; likewise.
        """
        ...

    def on_acknowledge(self, ctx: Context, packet: Packet, ack: Acknowledgement) -> None:
        """Learn how a packet of ours ended; on `Refused`, take back what sending had done."""

    def on_timeout(self, ctx: Context, packet: Packet) -> None:
        """Take back what sending had done."""


class Interchain(Module):
    """See the head of the file.

    Args:
        client_genesis: the chains that this one talks to.
        verifier: checks the signatures of certificates.
    """

    name = "interchain"
    events = calls.EVENTS

    def __init__(
        self,
        client_genesis: Iterable[clients.ClientGenesis] = (),
        verifier: Verifier | None = None,
    ) -> None:
        self._client_genesis: Final = tuple(client_genesis)
        self._verifier: Final = verifier if verifier is not None else Ed25519Verifier()
        self._apps: Final[dict[str, App]] = {}

    def register(self, app: App) -> None:
        """Give a port to an app; when the ledger is put together, never later."""
        if not packets.is_name(app.port) or app.port in self._apps:
            raise AssertionError(f"port {app.port!r} is no name, or taken")
        self._apps[app.port] = app

    def genesis(self, ctx: Context) -> None:
        """Write the clients, each trusting only its keys: no header, no root."""
        for section in self._client_genesis:
            if stores.CLIENTS.has(ctx.state, section.client_id):
                raise AssertionError(f"client {section.client_id!r} is declared twice")
            client = clients.initial_state(section, ctx.chain_id, ctx.timestamp_ms)
            members = ValidatorSet(set_id=section.set_id, members=section.validators)
            stores.CLIENTS.put(ctx.state, client, client.client_id)
            stores.SETS.put(ctx.state, members, client.client_id, members.set_id)

    # -- for other modules -------------------------------------------------------------------------

    def send(self, ctx: Context, client_id: str, port: str, payload: bytes, timeout_ms: int) -> int:
        """Commit to a packet; returns its sequence number.

        Args:
            ctx: of the block that sends.
            client_id: our client of the destination.
            port: an app of this chain; its callbacks hear how the packet ends.
            payload: for the app of the same port over there.
            timeout_ms: network time after which the destination refuses it.

        Raises:
            CallFailed: see `refusal`. A hook must catch it, or ask `refusal` first.
        """
        problem = self.refusal(ctx, client_id, port, payload, timeout_ms)
        if problem is not None:
            raise problem
        client = _known_client(ctx.state, client_id)
        books = stores.channel(ctx.state, client_id)
        packet = Packet(
            source_client=client_id,
            destination_client=client.counterparty,
            sequence=books.next_sequence,
            port=port,
            timeout_ms=timeout_ms,
            payload=payload,
        )
        self._open(ctx, books, packet, packets.packet_hash(packet, ctx.chain_id, client.chain_id))
        return packet.sequence

    def refusal(
        self, ctx: Context, client_id: str, port: str, payload: bytes, timeout_ms: int
    ) -> CallFailed | None:
        """Why `send` would refuse, or None."""
        client = stores.CLIENTS.get(ctx.state, client_id)
        if client is None:
            return CallFailed("unknown-client", f"this chain has no client {client_id!r}")
        if client.frozen:
            return CallFailed("client-frozen", client_id)
        if stores.PAUSED.get(ctx.state):
            return CallFailed("interchain-paused", "nothing is sent during an emergency stop")
        if port not in self._apps:
            return CallFailed("unknown-port", f"no app has port {port!r}")
        if len(payload) > packets.MAX_PAYLOAD_BYTES:
            return CallFailed("payload-too-large", f"{len(payload)} bytes")
        if not ctx.timestamp_ms < timeout_ms <= ctx.timestamp_ms + MAX_TIMEOUT_MS:
            return CallFailed(
                "bad-timeout", f"{timeout_ms} ms is past, or more than {MAX_TIMEOUT_MS} ms ahead"
            )
        books = stores.channel(ctx.state, client_id)
        if (
            stores.OPEN_BY_PORT.read(ctx.state, 0, client_id, port) >= MAX_OPEN_PER_PORT
            or books.next_sequence - books.oldest_open >= MAX_SPREAD
        ):
            return CallFailed("too-many-open", f"packets by {client_id!r} wait for their end")
        return None

    # -- calls -------------------------------------------------------------------------------------

    @handles(calls.UpdateClient, weight=calls.WEIGHTS[calls.UpdateClient])
    def update_client(self, ctx: Context, call: calls.UpdateClient) -> None:
        """Believe a header above the latest, or freeze over one that contradicts a recorded one."""
        client = _known_client(ctx.state, call.client_id)
        header = call.certified.header
        known = stores.CONSENSUS.get(ctx.state, call.client_id, header.height)
        with _refusals():
            if known is None:
                self._advance(ctx, client, call)
            elif known.header_hash != header.hash and not client.frozen:
                members = _validators(ctx.state, client, header.set_id)
                clients.check_conflict(client, known, members, call.certified, self._verifier)
                _freeze(ctx, client, header.height)

    def _advance(self, ctx: Context, client: clients.ClientState, call: calls.UpdateClient) -> None:
        members = _validators(ctx.state, client, client.set_id)
        following = clients.check_update(
            client, members, call.certified, call.next_set, ctx.timestamp_ms, self._verifier
        )
        header = call.certified.header
        stores.record_header(ctx.state, client, clients.recorded(header), following)
        ctx.emit(
            calls.ClientUpdated(
                client_id=client.client_id,
                height=header.height,
                header_hash=header.hash,
                timestamp_ms=header.timestamp_ms,
            )
        )

    @handles(calls.SubmitMisbehaviour, weight=calls.WEIGHTS[calls.SubmitMisbehaviour])
    def submit_misbehaviour(self, ctx: Context, call: calls.SubmitMisbehaviour) -> None:
        """Freeze a client whose chain finalised two contradicting headers."""
        client = _known_client(ctx.state, call.client_id)
        if client.frozen:
            return
        evidence = call.evidence
        sets = [
            _validators(ctx.state, client, certified.header.set_id)
            for certified in (evidence.first, evidence.second)
        ]
        with _refusals():
            clients.check_misbehaviour(client, sets[0], sets[1], evidence, self._verifier)
        _freeze(ctx, client, evidence.first.header.height)

    @handles(calls.ReceivePacket, weight=calls.WEIGHTS[calls.ReceivePacket])
    def receive_packet(self, ctx: Context, call: calls.ReceivePacket) -> None:
        """Deliver a proven packet to its app, once, and record the acknowledgement."""
        packet = call.packet
        client = _peer(ctx.state, packet.destination_client, packet.source_client)
        if stores.RECEIPTS.has(ctx.state, packet.destination_client, packet.sequence):
            return
        if stores.PAUSED.get(ctx.state):
            raise CallFailed("interchain-paused", "nothing is received during an emergency stop")
        if ctx.timestamp_ms > packet.timeout_ms:
            raise CallFailed("packet-expired", f"at {packet.timeout_ms}, now {ctx.timestamp_ms}")
        packet_id = packets.packet_hash(packet, client.chain_id, ctx.chain_id)
        key = stores.COMMITMENTS.key(packet.source_client, packet.sequence)
        _require_member(ctx.state, client, call.proof_height, key, encode(packet_id), call.proof)
        self._deliver(ctx, packet, packet_id)

    @handles(calls.AcknowledgePacket, weight=calls.WEIGHTS[calls.AcknowledgePacket])
    def acknowledge_packet(self, ctx: Context, call: calls.AcknowledgePacket) -> None:
        """End an open packet by its proven acknowledgement."""
        packet, ack = call.packet, call.acknowledgement
        packet_id = _open_packet(ctx, packet)
        if packet_id is None:
            return
        client = _peer(ctx.state, packet.source_client, packet.destination_client)
        key = stores.ACKNOWLEDGEMENTS.key(packet.destination_client, packet.sequence)
        _require_member(ctx.state, client, call.proof_height, key, encode(ack), call.proof)
        delivered = isinstance(ack, Delivered)
        _close(ctx.state, packet, "delivered" if delivered else "refused")
        with _refusals():
            self._apps[packet.port].on_acknowledge(_nobody(ctx), packet, ack)
        ctx.emit(
            calls.PacketAcknowledged(
                packet_id=packet_id,
                client_id=packet.source_client,
                sequence=packet.sequence,
                port=packet.port,
                acknowledgement=ack,
            )
        )

    @handles(calls.TimeoutPacket, weight=calls.WEIGHTS[calls.TimeoutPacket])
    def timeout_packet(self, ctx: Context, call: calls.TimeoutPacket) -> None:
        """End an open packet of which the receiver provably has no receipt and wants none."""
        packet = call.packet
        packet_id = _open_packet(ctx, packet)
        if packet_id is None:
            return
        client = _peer(ctx.state, packet.source_client, packet.destination_client)
        header = _recorded(ctx.state, client, call.proof_height)
        if header.timestamp_ms <= packet.timeout_ms:
            raise CallFailed(
                "not-expired", f"proved at {header.timestamp_ms}, timeout {packet.timeout_ms}"
            )
        key = stores.RECEIPTS.key(packet.destination_client, packet.sequence)
        if not verify_absence(header.state_root, key, call.proof):
            raise CallFailed("bad-proof", "absence of the receipt is not proved")
        _close(ctx.state, packet, "timed_out")
        with _refusals():
            self._apps[packet.port].on_timeout(_nobody(ctx), packet)
        ctx.emit(
            calls.PacketTimedOut(
                packet_id=packet_id,
                client_id=packet.source_client,
                sequence=packet.sequence,
                port=packet.port,
            )
        )

    # -- the pool's rule ---------------------------------------------------------------------------

    def precheck(self, state: State, sender: bytes, call: Wire) -> None:  # noqa: ARG002 - a port
        """Keep calls whose work is done out of the pool and of new blocks."""
        if is_redundant(state, call):
            raise InvalidTransaction("redundant", f"{type(call).__name__}: already done")

    # -- laws --------------------------------------------------------------------------------------

    def check_invariants(self, state: State) -> Iterator[str]:
        """Each packet has ended exactly once or is open; each client has what its state says."""
        yield from _check_packets(state)
        for _, client in stores.CLIENTS.scan(state):
            name = client.client_id
            if not stores.SETS.has(state, name, client.set_id):
                yield f"client {name}: its validator set {client.set_id} is missing"
            latest = stores.CONSENSUS.get(state, name, client.latest_height)
            if (None if latest is None else latest.header_hash) != client.latest_hash:
                yield f"client {name}: the latest header is not the one recorded"

    # -- parts -------------------------------------------------------------------------------------

    def _open(self, ctx: Context, books: Channel, packet: Packet, packet_id: bytes) -> None:
        state, name = ctx.state, packet.source_client
        stores.COMMITMENTS.put(state, packet_id, name, packet.sequence)
        stores.OUTBOX.put(state, packet, name, packet.sequence)
        _count_port(state, packet, 1)
        advanced = structs.replace(
            books,
            next_sequence=books.next_sequence + 1,
            open_packets=books.open_packets + 1,
        )
        stores.CHANNELS.put(state, advanced, name)
        ctx.emit(calls.PacketSent(packet_id=packet_id, packet=packet))

    def _deliver(self, ctx: Context, packet: Packet, packet_id: bytes) -> None:
        """Receipt first, then the app, then the acknowledgement of what the app said."""
        state, name = ctx.state, packet.destination_client
        stores.RECEIPTS.put(state, packets.receipt_hash(packet_id), name, packet.sequence)
        ack = self._run_app(ctx, packet)
        stores.ACKNOWLEDGEMENTS.put(state, ack, name, packet.sequence)
        books = stores.channel(state, name)
        stores.CHANNELS.put(state, structs.replace(books, received=books.received + 1), name)
        ctx.emit(
            calls.PacketReceived(
                packet_id=packet_id,
                client_id=name,
                sequence=packet.sequence,
                port=packet.port,
                acknowledgement=ack,
            )
        )

    def _run_app(self, ctx: Context, packet: Packet) -> Acknowledgement:
        app = self._apps.get(packet.port)
        if app is None:
            return Refused(code="unknown-port", message=f"no app has port {packet.port!r}")
        mark = ctx.mark()
        try:
            return Delivered(result=_bounded(app.on_receive(_nobody(ctx), packet)))
        except (CallFailed, AmountError, RemoteFault) as refusal:
            ctx.undo(mark)
            return _refused(refusal)


def is_redundant(state: State, call: Wire) -> bool:
    """Whether a relay call can change nothing, because its work is done."""
    match call:
        case calls.UpdateClient():
            return _is_stale(state, call)
        case calls.ReceivePacket(packet=packet):
            return stores.RECEIPTS.has(state, packet.destination_client, packet.sequence)
        case calls.AcknowledgePacket(packet=packet) | calls.TimeoutPacket(packet=packet):
            ended = not stores.COMMITMENTS.has(state, packet.source_client, packet.sequence)
            books = stores.channel(state, packet.source_client)
            return ended and packet.sequence < books.next_sequence
        case calls.SubmitMisbehaviour(client_id=client_id):
            client = stores.CLIENTS.get(state, client_id)
            return client is not None and client.frozen
        case _:
            return False


def _is_stale(state: State, call: calls.UpdateClient) -> bool:
    """At or below the latest height, unless it contradicts a header that is recorded."""
    client = stores.CLIENTS.get(state, call.client_id)
    header = call.certified.header
    if client is None or header.height > client.latest_height:
        return False
    known = stores.CONSENSUS.get(state, call.client_id, header.height)
    return client.frozen or known is None or known.header_hash == header.hash


def _known_client(state: State, client_id: str) -> clients.ClientState:
    client = stores.CLIENTS.get(state, client_id)
    if client is None:
        raise CallFailed("unknown-client", f"this chain has no client {client_id!r}")
    return client


def _peer(state: State, ours: str, theirs: str) -> clients.ClientState:
    """Our live client of the chain that a packet names, which must name us back."""
    client = _known_client(state, ours)
    if client.counterparty != theirs:
        raise CallFailed("wrong-counterparty", f"client {ours!r} faces {client.counterparty!r}")
    if client.frozen:
        raise CallFailed("client-frozen", ours)
    return client


def _validators(state: State, client: clients.ClientState, set_id: int) -> ValidatorSet:
    members = stores.SETS.get(state, client.client_id, set_id)
    if members is None:
        raise CallFailed("unknown-set", f"client {client.client_id!r} holds no set {set_id}")
    return members


def _recorded(state: State, client: clients.ClientState, height: int) -> clients.ConsensusState:
    header = stores.CONSENSUS.get(state, client.client_id, height)
    if header is None:
        raise CallFailed("unknown-header", f"client {client.client_id!r} has no header {height}")
    return header


def _require_member(
    state: State,
    client: clients.ClientState,
    height: int,
    key: bytes,
    value: bytes,
    proof: StateProof,
) -> None:
    root = _recorded(state, client, height).state_root
    if not verify_membership(root, key, value, proof):
        raise CallFailed("bad-proof", f"not proved by header {height} of {client.client_id!r}")


def _open_packet(ctx: Context, packet: Packet) -> bytes | None:
    """The id of an open packet of ours; None if it has ended.

    Raises:
        CallFailed: this chain never sent it, or sent another one under its number.
    """
    state, name = ctx.state, packet.source_client
    client = _peer(state, name, packet.destination_client)
    committed = stores.COMMITMENTS.get(state, name, packet.sequence)
    if committed is None:
        if packet.sequence >= stores.channel(state, name).next_sequence:
            raise CallFailed("never-sent", f"packet {packet.sequence} by {name!r}")
        return None
    if committed != packets.packet_hash(packet, ctx.chain_id, client.chain_id):
        raise CallFailed("other-packet", f"packet {packet.sequence} by {name!r} is another one")
    return committed


def _close(state: State, packet: Packet, outcome: str) -> None:
    """Erase an open packet and book how it ended."""
    name = packet.source_client
    stores.COMMITMENTS.delete(state, name, packet.sequence)
    stores.OUTBOX.delete(state, name, packet.sequence)
    _count_port(state, packet, -1)
    books = stores.channel(state, name)
    oldest = books.oldest_open
    while oldest < books.next_sequence and not stores.COMMITMENTS.has(state, name, oldest):
        oldest += 1
    ended: dict[str, int] = {outcome: getattr(books, outcome) + 1}
    advanced = structs.replace(
        books, oldest_open=oldest, open_packets=books.open_packets - 1, **ended
    )
    stores.CHANNELS.put(state, advanced, name)


def _count_port(state: State, packet: Packet, change: int) -> None:
    key = (packet.source_client, packet.port)
    count = stores.OPEN_BY_PORT.read(state, 0, *key) + change
    stores.OPEN_BY_PORT.put(state, count, *key)


def _freeze(ctx: Context, client: clients.ClientState, height: int) -> None:
    stores.CLIENTS.put(ctx.state, structs.replace(client, frozen=True), client.client_id)
    ctx.emit(calls.ClientFrozen(client_id=client.client_id, height=height))


def _nobody(ctx: Context) -> Context:
    """The context for apps: same state and events, but no sender to mistake for an authority."""
    return dataclasses.replace(ctx, sender=NOBODY)


def _bounded(result: bytes) -> bytes:
    if len(result) > packets.MAX_RESULT_BYTES:
        raise CallFailed("result-too-large", f"{len(result)} bytes")
    return result


def _refused(refusal: Exception) -> Refused:
    match refusal:
        case CallFailed(code=code, message=message):
            return Refused(code=code[:64], message=message[:512])
        case RemoteFault(reason=reason, detail=detail):
            return Refused(code=reason[:64], message=detail[:512])
        case _:
            return Refused(code="amount-out-of-range", message=str(refusal)[:512])


@contextmanager
def _refusals() -> Iterator[None]:
    """A remote fault found while a call runs is that call's refusal."""
    try:
        yield
    except RemoteFault as fault:
        raise CallFailed(fault.reason, fault.detail) from None


def _check_packets(state: State) -> Iterator[str]:
    """The books of every channel against the records themselves."""
    committed = _per_client(state, stores.COMMITMENTS.prefix)
    boxed = _per_client(state, stores.OUTBOX.prefix)
    received = _per_client(state, stores.RECEIPTS.prefix)
    acknowledged = _per_client(state, stores.ACKNOWLEDGEMENTS.prefix)
    for _, client in stores.CLIENTS.scan(state):
        name = client.client_id
        books, key = stores.channel(state, name), store_key(name)
        ended = books.delivered + books.refused + books.timed_out
        if books.next_sequence - 1 != books.open_packets + ended:
            yield f"client {name}: {books.next_sequence - 1} sent, but {ended} ended, see {books}"
        if not committed[key] == boxed[key] == books.open_packets:
            yield f"client {name}: {books.open_packets} open, {committed[key]} committed"
        if not received[key] == acknowledged[key] == books.received:
            yield f"client {name}: {books.received} received, {received[key]} receipts"


def _per_client(state: State, prefix: bytes) -> Counter[bytes]:
    """How many records of a store each client has."""
    keys = (key[len(prefix) :] for key, _ in state.scan(prefix))
    return Counter(key[: 1 + key[0]] for key in keys)
