"""`gtx devices`: the households of a neighbourhood and their devices, in one process.

At each interval boundary every household is brought up to date, its devices sign their registers,
the record becomes durable, and only then is it offered to the devices' connections. Between
boundaries nothing is computed. After an outage of any length the same loop runs through the
boundaries that were missed: what it signs then is what it would have signed.

Each device logs in for itself and signs with a key that only this process holds.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Protocol

from gridtokenx.core.codec import decode
from gridtokenx.core.errors import LocalFault, Malformed
from gridtokenx.core.gridtime import INTERVAL_MS, GridClock
from gridtokenx.core.keys import Signer
from gridtokenx.core.units import ceil_div
from gridtokenx.devices.fleet.concentrator import FleetConcentrator
from gridtokenx.devices.fleet.journal import (
    BoundaryRecord,
    Journal,
    SignedReading,
    last_sequences,
)
from gridtokenx.devices.fleet.link import DeviceLink
from gridtokenx.devices.fleet.outbox import Outbox
from gridtokenx.devices.fleet.roster import HouseholdEntry, read_roster
from gridtokenx.devices.models.household import (
    HouseholdState,
    advance,
    new_household,
    reading_of,
)
from gridtokenx.devices.models.profiles import Profile, unpack_profiles
from gridtokenx.host.broker import BrokerAddress, BrokerState, open_broker
from gridtokenx.host.broker_address import (
    BrokerAuthority,
    BrokerPasswordFile,
    BrokerProtocol,
    BrokerUrl,
)
from gridtokenx.host.config import Setting
from gridtokenx.host.files import read_file
from gridtokenx.host.keyfile import KeyRing, find_password
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.readiness import Readiness
from gridtokenx.host.role import open_role
from gridtokenx.host.settings import GridTimeSettings
from gridtokenx.host.tasks import Tasks
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.ledger.readings import FIRST_SEQUENCE, RETAINED_BOUNDARIES
from gridtokenx.ledger.transactions import Transaction, sign_transaction

FULL_PERCENT: Final = 80
"""Of what a device keeps: above this a fleet is not ready."""
MAX_SLEEP_S: Final = 5.0
"""Longest sleep before the clock is looked at again: a laptop's sleep stops timers, not time."""


class FleetSettings(GridTimeSettings, frozen=True, kw_only=True):
    """Settings of `gtx devices`."""

    broker: BrokerUrl
    broker_protocol: BrokerProtocol = "5"
    broker_authority: BrokerAuthority = None
    broker_certificates: Annotated[
        Path | None,
        Setting("Directory of the devices' certificates for an mqtts broker: KEY.pem, a key each."),
    ] = None
    broker_password_file: BrokerPasswordFile = None
    concentrator: Annotated[
        str | None,
        Setting(
            "Name of a concentrator's key in `keys`: all devices then report through its one"
            " connection, in batches, instead of one connection each."
        ),
    ] = None
    roster: Annotated[Path, Setting("JSON file of households and devices.")]
    profiles: Annotated[Path, Setting("Profile file, made by `gtx testnet init`.")]
    keys: Annotated[Path, Setting("Directory of the devices' keys.")]
    keys_password_file: Annotated[Path | None, Setting("File that holds the keys' password.")] = (
        None
    )
    data: Annotated[Path, Setting("Directory of journals; made if absent.")]
    chain_id: Annotated[str, Setting("Chain id of the oracle chain, in hexadecimal.")]


@dataclass(frozen=True, slots=True)
class Device:
    """One device: what it is, its key, and what it still has to send."""

    kind: DeviceKind
    signer: Signer
    outbox: Outbox
    broker: BrokerAddress
    """The broker, and how this device logs in there."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a device signs with, and where and how it logs in."""

    signer: Signer
    broker: BrokerAddress


class Records(Protocol):
    """What a household remembers; `journal.Journal` keeps it in a file."""

    @property
    def records(self) -> Sequence[BoundaryRecord]:
        """The retained records, oldest first."""
        ...

    def append(self, record: BoundaryRecord) -> None:
        """Make a record durable; `LocalFault` if the disk refuses."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Household:
    """One household of a running fleet: its state, its journal, its devices."""

    def __init__(
        self,
        entry: HouseholdEntry,
        profile: Profile,
        logins: Mapping[str, Login],
        journal: Records,
        chain_id: bytes,
        first_boundary_ms: int,
    ) -> None:
        self.entry = entry
        self._profile = profile
        self._journal = journal
        self._chain_id = chain_id
        records = journal.records
        self._state: HouseholdState | None = records[-1].state if records else None
        self._first_boundary_ms = first_boundary_ms
        self._sequences = last_sequences(records)
        self.devices = tuple(
            Device(each.device_kind, login.signer, _outbox(login.signer, journal), login.broker)
            for each in entry.devices
            for login in (logins[each.key],)
        )

    @property
    def next_boundary_ms(self) -> int:
        """Grid time of the boundary whose reading comes next."""
        if self._state is None:
            return self._first_boundary_ms
        return (self._state.grid_ms // INTERVAL_MS + 1) * INTERVAL_MS

    async def pass_boundary(self) -> int:
        """Live through to the next boundary, sign, keep, then hand over; returns readings made."""
        record = self._record()
        await _finished(asyncio.to_thread(self._journal.append, record))
        self._state = record.state
        for device, reading in zip(self.devices, record.readings, strict=True):
            self._sequences[reading.device] = reading.sequence
            device.outbox.add(reading)
        return len(record.readings)

    def close(self) -> None:
        """Let go of the journal."""
        self._journal.close()

    def _record(self) -> BoundaryRecord:
        boundary_ms = self.next_boundary_ms
        if self._state is None:
            state = new_household(self.entry.spec, boundary_ms)
        else:
            state = advance(self.entry.spec, self._state, self._profile, boundary_ms)
        return BoundaryRecord(state, tuple(self._sign(device, state) for device in self.devices))

    def _sign(self, device: Device, state: HouseholdState) -> SignedReading:
        key = device.signer.public_key
        sequence = self._sequences.get(key, FIRST_SEQUENCE - 1) + 1
        reading = reading_of(self.entry.spec, state, device.kind)
        transaction = sign_transaction(device.signer, self._chain_id, sequence, [reading])
        return SignedReading(key, sequence, reading.boundary_grid_ms, transaction.encoded)


class Fleet:
    """All households of one process.

    Args:
        households: loaded ones.
        concentrator: through which all of them report; None if each device has its connection.
        clock: network time in milliseconds.
        grid_clock: the map to grid time.
        metrics: of the process.
        log: of the process.
    """

    def __init__(
        self,
        households: tuple[Household, ...],
        concentrator: Login | None,
        clock: Callable[[], int],
        grid_clock: GridClock,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        self.households = households
        self._clock = clock
        self._grid_clock = grid_clock
        self._metrics = metrics
        self._log = log
        devices = [device for household in households for device in household.devices]
        self._broker = BrokerState(log, len(devices) if concentrator is None else 1)
        self._concentrator: FleetConcentrator | None = None
        self._links: tuple[DeviceLink, ...] = ()
        if concentrator is None:
            self._links = tuple(self._make_links(households))
        else:
            outboxes = [device.outbox for device in devices]
            self._concentrator = FleetConcentrator(
                concentrator.broker, concentrator.signer, outboxes, self._broker, metrics
            )
        metrics.gauge("devices_connected", lambda: float(self.connected))
        metrics.gauge("readings_waiting", lambda: float(self.waiting))
        metrics.gauge("broker_buffered", lambda: float(self.fullest))

    def _make_links(self, households: Sequence[Household]) -> Iterator[DeviceLink]:
        return (
            DeviceLink(
                device.broker,
                device.signer,
                device.kind,
                household.entry.zone,
                device.outbox,
                self._broker,
                self._metrics,
            )
            for household in households
            for device in household.devices
        )

    @property
    def waiting(self) -> int:
        """Signed readings that are not known to be committed."""
        return sum(
            device.outbox.waiting for household in self.households for device in household.devices
        )

    @property
    def fullest(self) -> int:
        """Signed readings that wait in the fullest outbox; the oldest beyond the bound are lost."""
        return max(
            device.outbox.waiting for household in self.households for device in household.devices
        )

    @property
    def connected(self) -> int:
        """Connections to the broker at present."""
        return self._broker.connected

    @property
    def readiness(self) -> Readiness:
        """Whether every device is connected, and none is about to lose readings."""
        reasons = [] if self._broker.reason is None else [self._broker.reason]
        if 100 * self.fullest > FULL_PERCENT * RETAINED_BOUNDARIES:
            reasons.append(
                f"{self.fullest} readings of a device wait to be committed; it keeps"
                f" {RETAINED_BOUNDARIES}, and forgets the oldest beyond"
            )
        return Readiness.unless(reasons)

    async def run(self) -> None:
        """Live and report until cancelled."""
        tasks = Tasks()
        try:
            for link in self._links:
                tasks.spawn(link.run(), "device link")
            if self._concentrator is not None:
                tasks.spawn(self._concentrator.run(), "concentrator")
            tasks.spawn(self._live(), "households")
            await tasks.watch()
        finally:
            await tasks.close()

    async def _live(self) -> None:
        while True:
            boundary_ms = min(each.next_boundary_ms for each in self.households)
            await self._sleep_until(boundary_ms)
            for household in self.households:
                if household.next_boundary_ms == boundary_ms:
                    made = await household.pass_boundary()
                    self._metrics.count("readings_signed", made)
            if self._concentrator is not None:
                self._concentrator.wake()
            self._log.debug("boundary", grid_ms=boundary_ms, waiting=self.waiting)

    async def _sleep_until(self, grid_ms: int) -> None:
        due_ms = self._grid_clock.network_ms(grid_ms)
        while (early_ms := due_ms - self._clock()) > 0:  # noqa: ASYNC110 - no event tells the time
            await asyncio.sleep(min(early_ms / 1000, MAX_SLEEP_S))


async def run_fleet(settings: FleetSettings) -> None:
    """`gtx devices`: run the devices until cancelled.

    Raises:
        LocalFault: bad settings, files or keys, or a disk that refuses.
    """
    role = open_role(settings, "devices")
    async with open_fleet(settings, role.clock.now_ms, role.metrics, role.log) as fleet:
        facts = {"households": len(fleet.households)}
        async with role.serving(
            lambda: fleet.readiness, lambda: facts | {"readings_waiting": fleet.waiting}
        ):
            await fleet.run()


@asynccontextmanager
async def open_fleet(
    settings: FleetSettings, clock: Callable[[], int], metrics: Metrics, log: Logger
) -> AsyncIterator[Fleet]:
    """A fleet with its files open; let it `run`.

    Args:
        settings: of the process.
        clock: network time in milliseconds (wall time less the time that the network was down).
        metrics: of the process.
        log: of the process.

    Raises:
        LocalFault: bad settings, files or keys.
    """
    lock = _lock(settings.data)
    households: tuple[Household, ...] = ()
    try:
        households = load_households(settings)
        log.info("devices", households=len(households), broker=settings.broker)
        concentrator = _concentrator(settings)
        yield Fleet(households, concentrator, clock, settings.grid_clock, metrics, log)
    finally:
        for household in households:
            household.close()
        os.close(lock)


def load_households(settings: FleetSettings) -> tuple[Household, ...]:
    """Read everything that a fleet starts from.

    Raises:
        LocalFault: a file, key or journal that is missing, damaged, or another network's.
    """
    chain_id = parse_chain_id(settings.chain_id)
    roster = read_roster(settings.roster)
    profiles = unpack_profiles(read_file(settings.profiles), str(settings.profiles)).households
    ring = _ring(settings)
    broker = open_broker(settings)
    first_boundary_ms = ceil_div(settings.grid_epoch_ms, INTERVAL_MS) * INTERVAL_MS
    households: list[Household] = []
    for entry in roster.households:
        if entry.profile >= len(profiles):
            raise LocalFault(
                f"{settings.roster}: {entry.name} has profile {entry.profile}, but "
                f"{settings.profiles} holds {len(profiles)}"
            )
        logins = {
            device.key: _device_login(settings, broker, ring, device.key)
            for device in entry.devices
        }
        path = settings.data / f"{entry.name}.journal"
        journal = Journal(path)
        _check_journal(path, journal, chain_id)
        households.append(
            Household(entry, profiles[entry.profile], logins, journal, chain_id, first_boundary_ms)
        )
    return tuple(households)


def _ring(settings: FleetSettings) -> KeyRing:
    password = find_password(settings.keys, settings.keys_password_file, os.environ)
    return KeyRing.open(settings.keys, password)


def _concentrator(settings: FleetSettings) -> Login | None:
    if settings.concentrator is None:
        return None
    return _login(settings, open_broker(settings), _ring(settings), settings.concentrator)


def _device_login(settings: FleetSettings, broker: BrokerAddress, ring: KeyRing, key: str) -> Login:
    """A device behind a concentrator logs in nowhere."""
    if settings.concentrator is not None:
        return Login(ring.signer(key), broker)
    return _login(settings, broker, ring, key)


def _login(settings: FleetSettings, broker: BrokerAddress, ring: KeyRing, key: str) -> Login:
    """How a key's holder logs in: by its own certificate where there are any."""
    if settings.broker_certificates is not None:
        certificate = settings.broker_certificates / f"{key}.pem"
        broker = broker.with_certificate(certificate, ring.seed(key))
    return Login(ring.signer(key), broker)


def _check_journal(path: Path, journal: Journal, chain_id: bytes) -> None:
    """Refuse to go on from another network's readings."""
    if not journal.records:
        return
    for reading in journal.records[-1].readings:
        try:
            body = decode(reading.transaction, Transaction).body
        except Malformed as fault:
            raise LocalFault(f"{path}: holds a reading that does not read: {fault}") from None
        if body.chain_id != chain_id:
            raise LocalFault(
                f"{path}: belongs to the network {body.chain_id.hex()[:16]}, not to "
                f"{chain_id.hex()[:16]}; start over with `--fresh`"
            )


async def _finished(work: Coroutine[None, None, None]) -> None:
    """Await `work`, and in a cancellation too: a thread that writes a file cannot be called off."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _outbox(signer: Signer, journal: Records) -> Outbox:
    mine = [
        reading
        for record in journal.records
        for reading in record.readings
        if reading.device == signer.public_key
    ]
    return Outbox(signer.public_key, mine)


def parse_chain_id(text: str) -> bytes:
    """A chain id from the settings.

    Raises:
        LocalFault: it is none.
    """
    try:
        chain_id = bytes.fromhex(text)
    except ValueError:
        chain_id = b""
    if len(chain_id) != 32:
        raise LocalFault(f"chain_id {text!r} is not 64 hexadecimal digits")
    return chain_id


def _lock(directory: Path) -> int:
    """Hold the data directory alone: two fleets would sign the same numbers."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise LocalFault(f"{directory}: cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LocalFault(f"{directory}: another devices process uses it; stop that one") from None
    return descriptor
