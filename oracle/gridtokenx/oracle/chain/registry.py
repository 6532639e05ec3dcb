"""Which devices count: a copy of the consortium's decisions, kept by packets alone.

Law of the file: **nothing but a proven packet from the consortium changes a device.** Genesis knows
no device; each decision carries a revision, and one that is not newer than what is held changes
nothing, because packets have no order.

A reading is signed by a key, and booked to a device: the key may change by a later decision, the
device id and its registers stay.
"""

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from gridtokenx.core.codec import Wire
from gridtokenx.core.gridtime import GridClock, interval_at
from gridtokenx.core.types import UInt63
from gridtokenx.interchain.apps import registry as registry_packets
from gridtokenx.interchain.apps.registry import DeviceRegistration, DeviceRegistrations
from gridtokenx.interchain.packets import Acknowledgement, Packet
from gridtokenx.ledger.runtime import CallFailed, Context, Module
from gridtokenx.ledger.state import Log, Map, State


class Device(Wire, frozen=True):
    """One device as the oracle chain knows it."""

    registration: DeviceRegistration
    """The consortium's newest decision."""
    since: UInt63
    """First interval whose energy counts: the earliest that had not closed when it was registered."""
    until: UInt63 | None
    """The interval in which it was withdrawn; None while it is active."""


class DeviceRegistered(Wire, frozen=True, tag="registry.registered"):
    """A decision of the consortium took effect here."""

    registration: DeviceRegistration


DEVICES: Final = Map("registry.device", Device)
"""(device id) -> the device."""
KEYS: Final = Map("registry.key", bytes)
"""(public key) -> the id of the device that signs with it now."""
ORDER: Final = Log("registry.order", bytes)
"""Device ids by first registration: how a closing interval walks them."""


def device_by_key(state: State, public_key: bytes) -> Device | None:
    """The device that signs with this key now, active or withdrawn."""
    device = KEYS.get(state, public_key)
    return None if device is None else DEVICES.get(state, device)


def walk_devices(state: State, start: int, stop: int) -> Iterator[Device]:
    """Devices by order of first registration, from `start` to before `stop`."""
    for index in range(start, stop):
        device = DEVICES.get(state, ORDER.get(state, index) or b"")
        if device is not None:
            yield device


class Registry(Module):
    """Keeps the devices up to date.

    Args:
        clock: the map from block time to grid time.
        grace_ms: how long after its end an interval closes, in network time.
        consortium: our client of the consortium chain, the only one whose word counts.
    """

    name = "registry"
    events = (DeviceRegistered,)

    def __init__(self, clock: GridClock, grace_ms: int, consortium: str) -> None:
        self._clock: Final = clock
        self._grace_ms: Final = grace_ms
        self._consortium: Final = consortium

    # -- the app of port "registry" ----------------------------------------------------------------

    @property
    def port(self) -> str:
        """See `interchain.module.App`."""
        return registry_packets.PORT

    def on_receive(self, ctx: Context, packet: Packet) -> bytes:
        """Take note of what the consortium, and no other chain, decided."""
        if packet.destination_client != self._consortium:
            raise CallFailed("not-the-consortium", f"registrations by {packet.destination_client}")
        self.apply(ctx, registry_packets.decode_registrations(packet.payload))
        return b""

    def on_acknowledge(self, ctx: Context, packet: Packet, ack: Acknowledgement) -> None:
        """Nothing: this chain sends no registrations."""

    def on_timeout(self, ctx: Context, packet: Packet) -> None:
        """Nothing: this chain sends no registrations."""

    # -- what the consortium decided ---------------------------------------------------------------

    def apply(self, ctx: Context, batch: DeviceRegistrations) -> int:
        """Take note of a batch; returns how many decisions were news.

        Raises:
            CallFailed: a key is another device's, or a device changes its kind (what its registers
                mean); the whole packet is refused.
        """
        return sum(self._apply_one(ctx, registration) for registration in batch.registrations)

    def _apply_one(self, ctx: Context, registration: DeviceRegistration) -> bool:
        state = ctx.state
        known = DEVICES.get(state, registration.device)
        if known is not None and registration.revision <= known.registration.revision:
            return False
        holder = KEYS.get(state, registration.public_key)
        if holder is not None and holder != registration.device:
            raise CallFailed(
                "key-in-use", f"key {registration.public_key.hex()} is device {holder.hex()}'s"
            )
        if known is not None and registration.kind is not known.registration.kind:
            raise CallFailed(
                "kind-changed", f"device {registration.device.hex()}: register it as another device"
            )
        DEVICES.put(state, self._merged(ctx, known, registration), registration.device)
        if known is None:
            ORDER.append(state, registration.device)
        else:
            KEYS.delete(state, known.registration.public_key)
        KEYS.put(state, registration.device, registration.public_key)
        ctx.emit(DeviceRegistered(registration=registration))
        return True

    def _merged(
        self, ctx: Context, known: Device | None, registration: DeviceRegistration
    ) -> Device:
        grid_ms = self._clock.grid_ms(ctx.timestamp_ms)
        until = None if registration.active else interval_at(grid_ms)
        if known is not None:
            return replace(known, registration=registration, until=until)
        open_ms = self._clock.grid_ms(ctx.timestamp_ms - self._grace_ms)
        since = max(interval_at(open_ms), interval_at(self._clock.grid_epoch_ms))
        return Device(registration=registration, since=since, until=until)

    def check_invariants(self, state: State) -> Iterator[str]:
        """Every device is reachable by its key and is in the order once."""
        devices = dict(DEVICES.scan(state))
        listed = list(ORDER.walk(state))
        if len(listed) != len(devices) or set(listed) != {
            device.registration.device for device in devices.values()
        }:
            yield f"{len(devices)} devices, {len(listed)} in the order"
        for device in devices.values():
            key = device.registration.public_key
            if KEYS.get(state, key) != device.registration.device:
                yield f"key {key.hex()} does not lead to its device"
