"""The manifest: one typed TOML file that says what a network is.

The same manifest makes local processes today, and containers and simulations later. Every key has
a default, so an empty file is the default network; an unknown key or a value out of bounds is one
line that names it.
"""

import difflib
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.units import WATT
from gridtokenx.host.config import parse_toml
from gridtokenx.lab.files import read_regular

Count = Annotated[int, Meta(ge=0, le=100_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000_000)]
HALF_HOUR_MS: Final = 1_800_000
AHEAD_INTERVALS: Final = 4
"""Half hours ahead for which the testnet's households bid."""
GATE_MS: Final = 5_000
"""The gate closes so long before delivery, whatever the scale."""
BIDDING_MS: Final = 2_000
"""What a bid is given to be decided and signed (the bidder's margin before the gate)."""
BANGKOK_START: Final = "2026-04-22T09:00:00+07:00"


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all tables of a manifest."""


class Time(Section, frozen=True):
    """How grid time runs."""

    scale: Annotated[int, Meta(ge=1, le=3600)] = 60
    """Grid seconds per second of network time; a half hour lasts 1800/scale seconds."""
    start: str = BANGKOK_START
    """Grid time at genesis, ISO 8601 with offset; on a whole half hour."""

    @property
    def start_ms(self) -> int:
        """Grid time at genesis in Unix milliseconds."""
        try:
            moment = datetime.fromisoformat(self.start)
        except ValueError:
            raise LocalFault(
                f"time.start is {self.start!r}; write a date and time with offset, "
                f"like {BANGKOK_START}"
            ) from None
        if not 1971 <= moment.year < 2200:
            raise LocalFault(f"time.start {self.start!r} lies outside the years 1971 to 2199")
        if moment.tzinfo is None:
            raise LocalFault(f"time.start {self.start!r} needs an offset, like +07:00")
        start_ms = int(moment.astimezone(UTC).timestamp()) * 1000
        if start_ms % 1_800_000:
            raise LocalFault(f"time.start {self.start!r} is not on a whole half hour")
        return start_ms


class Public(Section, frozen=True):
    """The public chain."""

    validators: Annotated[int, Meta(ge=1, le=100)] = 4
    """Seats that every election fills."""
    candidates: Count = 0
    """Nodes that stand for election; 0 means exactly as many as seats."""
    slot_ms: Annotated[int, Meta(ge=500, le=60_000)] = 6_000
    epoch_slots: Annotated[int, Meta(ge=4, le=100_000)] = 100
    era_slots: Annotated[int, Meta(ge=4, le=1_000_000)] = 30
    """The validators are elected anew so often: 30 slots of 6 s are three minutes."""
    unbonding_eras: Annotated[int, Meta(ge=1, le=10_000)] = 4
    """Eras for which unbonded stake stays locked. Short enough to watch; a real network needs weeks."""


class Consortium(Section, frozen=True):
    """The consortium chain."""

    replicas: Annotated[int, Meta(ge=4, le=21)] = 4
    block_time_ms: Annotated[int, Meta(ge=0, le=60_000)] = 1_000
    rotation_blocks: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """The leadership passes on after so many blocks; 0: only when a leader fails."""


class Oracle(Section, frozen=True):
    """The oracle chain."""

    nodes: Annotated[int, Meta(ge=4, le=21)] = 4
    block_time_ms: Annotated[int, Meta(ge=0, le=60_000)] = 1_000
    rotation_blocks: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """The leadership passes on after so many blocks; 0: only when a leader fails."""
    grace_ms: Annotated[int, Meta(ge=6_001, le=600_000)] = 8_000
    """How long after an interval's end it closes, in network time."""


class Bridge(Section, frozen=True):
    """Relayers between the chains."""

    relayers: Annotated[int, Meta(ge=1, le=16)] = 2


class Devices(Section, frozen=True):
    """Households and what they own."""

    households: Annotated[int, Meta(ge=2, le=10_000)] = 24
    solar_percent: Annotated[int, Meta(ge=0, le=100)] = 50
    """Share of households with panels."""
    battery_percent: Annotated[int, Meta(ge=0, le=100)] = 25
    """Share of households with a battery (those with panels first)."""
    profile_days: Annotated[int, Meta(ge=1, le=366)] = 7
    """Days of generated profiles; they repeat after that."""

    @property
    def solar(self) -> int:
        """Households with panels."""
        return self.households * self.solar_percent // 100

    @property
    def batteries(self) -> int:
        """Households with a battery."""
        return self.households * self.battery_percent // 100


class Market(Section, frozen=True):
    """What households trade under."""

    minimum_order_wh: Positive = 100
    opening_watt: Positive = 5_000
    """WATT in each household's account at genesis."""

    @property
    def opening_uwatt(self) -> int:
        """The same in micro-WATT."""
        return self.opening_watt * WATT


class Workload(Section, frozen=True):
    """What the testnet's own agents do beside trading."""

    bid: bool = True
    """Households bid for and offer energy."""
    retire: bool = True
    """Retire some certificates as they appear."""
    transfers: bool = True
    """Send GRID over the bridge and back, one of them made to expire."""


class Ports(Section, frozen=True):
    """Loopback ports."""

    gateway: Annotated[int, Meta(ge=1_024, le=65_535)] = 18_080
    base: Annotated[int, Meta(ge=1_024, le=65_000)] = 26_600
    """The other processes take the ports from here on."""


class Manifest(Section, frozen=True):
    """A whole network."""

    name: Annotated[str, Meta(pattern="^[a-z][a-z0-9-]{0,30}$")] = "local"
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 1
    """Decides weather, households and forecasts; never keys."""
    time: Time = Time()
    public: Public = Public()
    consortium: Consortium = Consortium()
    oracle: Oracle = Oracle()
    bridge: Bridge = Bridge()
    devices: Devices = Devices()
    market: Market = Market()
    workload: Workload = Workload()
    ports: Ports = Ports()


def load_manifest(path: Path) -> Manifest:
    """The manifest in a TOML file.

    Raises:
        LocalFault: unreadable, not TOML, an unknown key, or a value that is not allowed.
    """
    try:
        raw = parse_toml(read_regular(path).decode())
    except OSError as error:
        raise LocalFault(f"manifest {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise LocalFault(f"manifest {path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise LocalFault(f"manifest {path}: not TOML: {error}") from None
    return _convert(raw, str(path))


def dump_manifest(manifest: Manifest, *, brief: bool = False) -> str:
    """A manifest as TOML.

    Args:
        manifest: what to write.
        brief: leave out what is as by default, but for the name; else every value is written out.
    """
    lines: list[str] = []
    tables: list[str] = []
    usual = Manifest()
    for name in manifest.__struct_fields__:
        value, default = getattr(manifest, name), getattr(usual, name)
        if isinstance(value, Section):
            written = [
                f"{key} = {_toml(getattr(value, key))}"
                for key in value.__struct_fields__
                if not brief or getattr(value, key) != getattr(default, key)
            ]
            tables += ["", f"[{name}]", *written] if written else []
        elif not brief or name == "name" or value != default:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def parse_manifest(text: str, source: str) -> Manifest:
    """The inverse of `dump_manifest`."""
    return _convert(parse_toml(text), source)


def _convert(raw: dict[str, object], source: str) -> Manifest:
    _check_keys(raw, Manifest, source, ())
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise LocalFault(f"manifest {source}: {_humanise(str(error))}") from None
    check_manifest(manifest, source)
    return manifest


def check_manifest(manifest: Manifest, source: str) -> None:
    """Refuse values that are allowed each by itself, and could not work together.

    Raises:
        LocalFault: the first such combination, and what to change.
    """
    try:
        _ = manifest.time.start_ms
    except LocalFault as fault:
        raise LocalFault(f"manifest {source}: {fault}") from None
    for problem in (*_problems(manifest), *_port_problems(manifest)):
        raise LocalFault(f"manifest {source}: {problem}")


def _problems(manifest: Manifest) -> Iterator[str]:
    public, devices = manifest.public, manifest.devices
    if 0 < public.candidates < public.validators:
        yield (
            f"public.candidates = {public.candidates} is fewer than "
            f"public.validators = {public.validators}; use 0 for 'as many as seats'"
        )
    if devices.battery_percent > devices.solar_percent:
        yield (
            f"devices.battery_percent = {devices.battery_percent} exceeds devices.solar_percent = "
            f"{devices.solar_percent}: a battery stores what panels make; lower the one or raise the other"
        )
    needed_ms = GATE_MS + BIDDING_MS + 2 * manifest.consortium.block_time_ms
    if needed_ms * manifest.time.scale > AHEAD_INTERVALS * HALF_HOUR_MS:
        yield (
            f"time.scale = {manifest.time.scale}: a half hour lasts "
            f"{HALF_HOUR_MS // manifest.time.scale} ms, and households bid {AHEAD_INTERVALS} ahead, so no bid "
            f"would be in a block before its gate; at most {AHEAD_INTERVALS * HALF_HOUR_MS // needed_ms} "
            "works"
        )


def _port_problems(manifest: Manifest) -> Iterator[str]:
    ports = manifest.ports
    nodes = manifest.public.candidates or manifest.public.validators
    nodes += manifest.consortium.replicas + manifest.oracle.nodes
    count = 2 * (2 + nodes) + manifest.bridge.relayers + 2
    last = ports.base + count - 1
    if last > 65_535:
        yield (
            f"ports.base = {ports.base}: the processes need {count} ports from there on; at most "
            f"{65_536 - count} fits"
        )
    if ports.base <= ports.gateway <= last:
        yield (
            f"ports.gateway = {ports.gateway} is one of the ports {ports.base} to {last} that the other "
            "processes take from ports.base on; choose one outside"
        )


def _check_keys(
    raw: dict[str, object], table: type[Section], source: str, path: tuple[str, ...]
) -> None:
    known = {field.name: field.type for field in msgspec.structs.fields(table)}
    for key, value in raw.items():
        name = ".".join((*path, key))
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise LocalFault(f"manifest {source}: unknown key {name!r}; {hint}")
        kind = known[key]
        if isinstance(kind, type) and issubclass(kind, Section):
            if not isinstance(value, dict):
                raise LocalFault(f"manifest {source}: {name} is a table, not {value!r}")
            _check_keys(value, kind, source, (*path, key))


def _humanise(message: str) -> str:
    reason, _, where = message.partition(" - at `$")
    return f"{where.strip('.`')}: {reason}" if where else reason


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    return str(value)
