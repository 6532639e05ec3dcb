"""Who may act on the energy chain, and which device is whose.

Law of the file: **the chain is permissioned.** Accounts and devices exist because genesis or the
operator says so; a suspended participant keeps balances and obligations, and may not trade.

Decisions about devices are made here and only noted elsewhere: each one raises the device's
revision and waits in an outbox until the end of the block, which sends it to the oracle chain in
batches. A batch that times out is sent again as the decisions stand then; revisions make that
harmless. A batch that is refused is sent again one by one, so that only the offending one stays out. The registrations of genesis leave in the same way with the first blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.types import Hash32, Index16, PublicKey, ShortText, UInt63
from gridtokenx.core.units import AmountError, checked_amount
from gridtokenx.interchain.apps import registry
from gridtokenx.interchain.apps.registry import (
    MAX_REGISTRATIONS,
    DeviceKind,
    DeviceRegistration,
    DeviceRegistrations,
    decode_registrations,
    encode_registrations,
)
from gridtokenx.interchain.module import Interchain
from gridtokenx.interchain.packets import Acknowledgement, Delivered, Packet
from gridtokenx.ledger.runtime import CallFailed, Context, Module, handles
from gridtokenx.ledger.state import Cell, Log, Map, State

BATCHES_PER_BLOCK: Final = 8
"""Packets that one block sends at most: a large genesis leaves over several blocks."""
HALF_HOURS: Final = 2
"""W over one interval, divided by this, are Wh."""
MAX_RATING_W: Final = 10_000_000
"""10 MW: the most that is connected to a distribution grid at one point. More is a typing error, and
keeps every sum and every plausible meter entry far inside 63 bits."""


# -- records ---------------------------------------------------------------------------------------


class Participant(Wire, frozen=True):
    """An enrolled account."""

    kyc_tier: Index16
    """How far its owner is identified; each market asks a minimum."""
    suspended: bool
    """It may not trade: after a default, or by the operator."""


class Connection(Wire, frozen=True):
    """Approved capacity of one account in one zone, summed over its active devices."""

    meter_w: UInt63
    """Connection points: bounds what can be drawn or fed in."""
    source_w: UInt63
    """Solar and storage behind them: bounds what can be fed in."""

    @property
    def max_buy_wh(self) -> int:
        """The most that one interval can draw. Rounds down."""
        return self.meter_w // HALF_HOURS

    @property
    def max_sell_wh(self) -> int:
        """The most that one interval can feed in. Rounds down."""
        return min(self.meter_w, self.source_w) // HALF_HOURS


NO_CONNECTION: Final = Connection(meter_w=0, source_w=0)


# -- calls -----------------------------------------------------------------------------------------


class Enrol(Wire, frozen=True, tag="participants.enrol"):
    """Enrol an account, or set its tier; the operator's."""

    account: PublicKey
    kyc_tier: Index16


class Suspend(Wire, frozen=True, tag="participants.suspend"):
    """Bar an account from trading; the operator's."""

    account: PublicKey


class Reinstate(Wire, frozen=True, tag="participants.reinstate"):
    """Let a suspended account trade again; the operator's."""

    account: PublicKey


class ApproveDevice(Wire, frozen=True, tag="participants.approve_device"):
    """Approve a connection, or change it (owner, key, zone, rating); the operator's."""

    device: Hash32
    """Device id: for a new one, its first public key."""
    public_key: PublicKey
    owner: PublicKey
    zone: Index16
    kind: DeviceKind
    rating_w: UInt63


class WithdrawDevice(Wire, frozen=True, tag="participants.withdraw_device"):
    """Refuse a device's readings from now on; the operator's."""

    device: Hash32


# -- events ----------------------------------------------------------------------------------------


class ParticipantChanged(Wire, frozen=True, tag="participants.changed"):
    """An account was enrolled, suspended or reinstated."""

    account: PublicKey
    kyc_tier: Index16
    suspended: bool
    reason: ShortText


class DeviceDecided(Wire, frozen=True, tag="participants.device_decided"):
    """A connection was approved, changed or withdrawn; it is on its way to the oracle chain."""

    registration: DeviceRegistration


class DeviceNoted(Wire, frozen=True, tag="participants.device_noted"):
    """The oracle chain has taken note of a device."""

    device: Hash32
    revision: UInt63


class DeviceRefused(Wire, frozen=True, tag="participants.device_refused"):
    """The oracle chain refused this very decision; the operator has to decide otherwise."""

    device: Hash32
    revision: UInt63
    code: ShortText


class RegistrationRefused(Wire, frozen=True, tag="participants.registration_refused"):
    """The oracle chain refused a batch of decisions; several are sent again one by one."""

    devices: UInt63
    code: ShortText


# -- the module ------------------------------------------------------------------------------------


class Participants(Module):
    """See the head of the file.

    Args:
        interchain: sends packets to the oracle chain.
        operator: the account that decides.
        zones: the grid zones that exist.
        accounts: opening participants with their tier.
        devices: connection approvals of genesis; revisions are 1.
        oracle_client: our light client of the oracle chain.
        timeout_ms: network time that a batch of decisions may take.
    """

    name = "participants"
    port = registry.PORT
    events = (
        ParticipantChanged,
        DeviceDecided,
        DeviceNoted,
        DeviceRefused,
        RegistrationRefused,
    )

    def __init__(
        self,
        interchain: Interchain,
        operator: bytes,
        zones: Sequence[int],
        *,
        accounts: Sequence[tuple[bytes, int]] = (),
        devices: Sequence[DeviceRegistration] = (),
        oracle_client: str = "oracle",
        timeout_ms: int = 120_000,
    ) -> None:
        self._interchain: Final = interchain
        self._operator: Final = operator
        self._zones: Final = frozenset(zones)
        self._accounts: Final = tuple(accounts)
        self._genesis_devices: Final = tuple(devices)
        self._oracle_client: Final = oracle_client
        self._timeout_ms: Final = timeout_ms
        self.participants: Final = Map("participants.account", Participant)
        self.devices: Final = Map("participants.device", DeviceRegistration)
        self.keys: Final = Map("participants.device_key", bytes)
        self.connections: Final = Map("participants.connection", Connection)
        self.noted: Final = Map("participants.noted", int)
        self.outbox: Final = Log("participants.outbox", bytes)
        self.alone: Final = Map("participants.alone", int)
        """Devices that travel in a packet of their own, with the revision that was refused in a batch."""
        self.sent: Final = Cell("participants.sent", int, 0)

    def genesis(self, ctx: Context) -> None:
        """Enrol the opening accounts and approve the opening connections."""
        for account, kyc_tier in self._accounts:
            self._set_participant(ctx, account, Participant(kyc_tier, suspended=False), "genesis")
        for device in self._genesis_devices:
            try:
                self._decide(ctx, device)
            except (CallFailed, AmountError) as refusal:
                raise LocalFault(
                    f"genesis: device {device.device.hex()[:16]}: {refusal}; correct the file"
                ) from None

    # -- reads -------------------------------------------------------------------------------------

    def participant(self, state: State, account: bytes) -> Participant | None:
        """An enrolled account, or None."""
        return self.participants.get(state, account)

    def require_trader(self, state: State, account: bytes, kyc_tier: int) -> None:
        """Check that an account may trade.

        Raises:
            CallFailed: not enrolled, suspended, or of too low a tier.
        """
        participant = self.participants.get(state, account)
        if participant is None:
            raise CallFailed("not-enrolled", "ask the operator to enrol this account")
        if participant.suspended:
            raise CallFailed("suspended", "this account may not trade; ask the operator")
        if participant.kyc_tier < kyc_tier:
            raise CallFailed(
                "kyc-tier", f"tier {participant.kyc_tier}, this market asks {kyc_tier}"
            )

    def connection(self, state: State, account: bytes, zone: int) -> Connection:
        """The approved capacity of an account in a zone."""
        return self.connections.read(state, NO_CONNECTION, account, zone)

    def device(self, state: State, device: bytes) -> DeviceRegistration | None:
        """The newest decision about a device, or None."""
        return self.devices.get(state, device)

    # -- for other modules -------------------------------------------------------------------------

    def suspend_for(self, ctx: Context, account: bytes, reason: str) -> None:
        """Bar an account from trading, by a rule of the chain."""
        participant = self.participants.get(ctx.state, account)
        if participant is not None and not participant.suspended:
            self._set_participant(ctx, account, replace(participant, suspended=True), reason)

    # -- calls -------------------------------------------------------------------------------------

    @handles(Enrol)
    def enrol(self, ctx: Context, call: Enrol) -> None:
        """Enrol an account, or set its tier."""
        self._require_operator(ctx)
        known = self.participants.get(ctx.state, call.account)
        suspended = known is not None and known.suspended
        self._set_participant(
            ctx, call.account, Participant(call.kyc_tier, suspended=suspended), "enrolled"
        )

    @handles(Suspend)
    def suspend(self, ctx: Context, call: Suspend) -> None:
        """Bar an account from trading."""
        self._require_operator(ctx)
        participant = self._require_participant(ctx, call.account)
        self._set_participant(ctx, call.account, replace(participant, suspended=True), "operator")

    @handles(Reinstate)
    def reinstate(self, ctx: Context, call: Reinstate) -> None:
        """Let a suspended account trade again."""
        self._require_operator(ctx)
        participant = self._require_participant(ctx, call.account)
        self._set_participant(ctx, call.account, replace(participant, suspended=False), "operator")

    @handles(ApproveDevice, weight=20)
    def approve_device(self, ctx: Context, call: ApproveDevice) -> None:
        """Approve a connection, or change it."""
        self._require_operator(ctx)
        known = self.devices.get(ctx.state, call.device)
        if known is None and call.device != call.public_key:
            raise CallFailed("device-id", "a new device's id is its first public key")
        self._decide(
            ctx,
            DeviceRegistration(
                device=call.device,
                public_key=call.public_key,
                owner=call.owner,
                zone=call.zone,
                kind=call.kind,
                rating_w=call.rating_w,
                revision=1 if known is None else known.revision + 1,
                active=True,
            ),
        )

    @handles(WithdrawDevice, weight=20)
    def withdraw_device(self, ctx: Context, call: WithdrawDevice) -> None:
        """Refuse a device's readings from now on."""
        self._require_operator(ctx)
        known = self.devices.get(ctx.state, call.device)
        if known is None or not known.active:
            raise CallFailed("unknown-device", "no active device has this id")
        self._decide(ctx, replace(known, revision=known.revision + 1, active=False))

    # -- decisions on their way to the oracle chain ------------------------------------------------

    def end_block(self, ctx: Context) -> None:
        """Send what waits in the outbox."""
        first, waiting = self.sent.get(ctx.state), self.outbox.length(ctx.state)
        sent = first
        for _ in range(BATCHES_PER_BLOCK):
            upto = self._batch_end(ctx.state, sent, waiting)
            if sent == upto or not self._send_batch(ctx, sent, upto):
                break
            sent = upto
        if sent > first:
            self._forget_sent(ctx.state, sent, waiting)

    def _batch_end(self, state: State, start: int, waiting: int) -> int:
        """Where the next packet's slice of the outbox ends."""
        for index in range(start, min(start + MAX_REGISTRATIONS, waiting)):
            if self.alone.has(state, self.outbox.get(state, index) or b""):
                return max(index, start + 1)
        return min(start + MAX_REGISTRATIONS, waiting)

    def _send_batch(self, ctx: Context, start: int, stop: int) -> bool:
        """Send one slice of the outbox; False while the way is closed."""
        entries = {self.outbox.get(ctx.state, index) for index in range(start, stop)}
        decisions = (
            self.devices.get(ctx.state, device) for device in sorted(filter(None, entries))
        )
        batch = DeviceRegistrations(tuple(decision for decision in decisions if decision))
        payload = encode_registrations(batch)
        timeout_ms = ctx.timestamp_ms + self._timeout_ms
        route = (self._oracle_client, self.port)
        if self._interchain.refusal(ctx, *route, payload, timeout_ms) is not None:
            return False
        self._interchain.send(ctx, *route, payload, timeout_ms)
        return True

    def _forget_sent(self, state: State, sent: int, waiting: int) -> None:
        """Move the mark; an outbox that is empty starts over, so it never grows for good."""
        if sent == waiting:
            self.outbox.clear(state)
            sent = 0
        self.sent.put(state, sent)

    def on_receive(self, ctx: Context, packet: Packet) -> bytes:  # noqa: ARG002 - the port's
        """Refuse: decisions about devices are made here alone."""
        raise CallFailed("one-way", "this chain decides about devices, and takes no decisions")

    def on_acknowledge(self, ctx: Context, packet: Packet, ack: Acknowledgement) -> None:
        """Note which decisions the oracle chain knows."""
        batch = decode_registrations(packet.payload).registrations
        if not isinstance(ack, Delivered):
            self._on_refusal(ctx, batch, ack.code)
            return
        for decision in batch:
            self.alone.delete(ctx.state, decision.device)
            if decision.revision > self.noted.read(ctx.state, 0, decision.device):
                self.noted.put(ctx.state, decision.revision, decision.device)
                ctx.emit(DeviceNoted(device=decision.device, revision=decision.revision))

    def _on_refusal(self, ctx: Context, batch: Sequence[DeviceRegistration], reason: str) -> None:
        """One bad decision spoils a packet: find it by sending each alone, then say which it is."""
        ctx.emit(RegistrationRefused(devices=len(batch), code=reason))
        for decision in batch:
            if len(batch) > 1:
                self.alone.put(ctx.state, decision.revision, decision.device)
                self.outbox.append(ctx.state, decision.device)
            else:
                self.alone.delete(ctx.state, decision.device)
                ctx.emit(DeviceRefused(decision.device, decision.revision, reason))

    def on_timeout(self, ctx: Context, packet: Packet) -> None:
        """Send the decisions again, as they stand now."""
        for decision in decode_registrations(packet.payload).registrations:
            self.outbox.append(ctx.state, decision.device)

    # -- laws --------------------------------------------------------------------------------------

    def check_invariants(self, state: State) -> Iterator[str]:
        """Connections are the sums of their devices; nothing is noted that was not decided."""
        sums: dict[bytes, Connection] = {}
        revisions = {}
        for _, device in self.devices.scan(state):
            revisions[device.device] = device.revision
            key = self.connections.key(device.owner, device.zone)
            if device.active:
                sums[key] = _with(sums.get(key, NO_CONNECTION), device, 1)
        stored = {
            self.connections.prefix + key: connection
            for key, connection in self.connections.scan(state)
            if connection != NO_CONNECTION
        }
        if {key: value for key, value in sums.items() if value != NO_CONNECTION} != stored:
            yield "a connection's capacity is not the sum of its devices"
        for key, revision in self.noted.scan(state):
            if revision > revisions.get(key[1:], 0):
                yield f"device {key[1:].hex()[:16]}: revision {revision} was noted, never decided"

    # -- parts -------------------------------------------------------------------------------------

    def _require_operator(self, ctx: Context) -> None:
        if ctx.sender != self._operator:
            raise CallFailed("not-operator", "only the operator of the consortium decides this")

    def _require_participant(self, ctx: Context, account: bytes) -> Participant:
        participant = self.participants.get(ctx.state, account)
        if participant is None:
            raise CallFailed("not-enrolled", "no such participant")
        return participant

    def _set_participant(
        self, ctx: Context, account: bytes, participant: Participant, reason: str
    ) -> None:
        self.participants.put(ctx.state, participant, account)
        ctx.emit(
            ParticipantChanged(
                account=account,
                kyc_tier=participant.kyc_tier,
                suspended=participant.suspended,
                reason=reason,
            )
        )

    def _decide(self, ctx: Context, decision: DeviceRegistration) -> None:
        """Put a decision in force here, and in the outbox."""
        if decision.rating_w > MAX_RATING_W:
            raise CallFailed(
                "rating-too-high", f"{decision.rating_w} W, at most {MAX_RATING_W} W at one point"
            )
        if decision.zone not in self._zones:
            raise CallFailed("unknown-zone", f"zone {decision.zone} does not exist")
        if not self.participants.has(ctx.state, decision.owner):
            raise CallFailed("not-enrolled", "the owner is no participant")
        if self.keys.read(ctx.state, decision.device, decision.public_key) != decision.device:
            raise CallFailed("key-in-use", "another device signs with this key")
        before = self.devices.get(ctx.state, decision.device)
        if before is not None and before.kind is not decision.kind:
            raise CallFailed(
                "kind-changed", f"it is a {before.kind.name}; approve the other as a new device"
            )
        for device, sign in ((before, -1), (decision, 1)):
            if device is not None and device.active:
                key = (device.owner, device.zone)
                held = self.connections.read(ctx.state, NO_CONNECTION, *key)
                self.connections.put(ctx.state, _with(held, device, sign), *key)
        if before is not None:
            self.keys.delete(ctx.state, before.public_key)
        self.keys.put(ctx.state, decision.device, decision.public_key)
        self.devices.put(ctx.state, decision, decision.device)
        self.outbox.append(ctx.state, decision.device)
        ctx.emit(DeviceDecided(registration=decision))


def _with(held: Connection, device: DeviceRegistration, sign: int) -> Connection:
    """Capacity with one device more or less."""
    rating_w = sign * device.rating_w
    if device.kind is DeviceKind.METER:
        return replace(held, meter_w=checked_amount(held.meter_w + rating_w))
    if device.kind in (DeviceKind.SOLAR, DeviceKind.BATTERY):
        return replace(held, source_w=checked_amount(held.source_w + rating_w))
    return held
