"""Which households and devices a fleet runs: one readable JSON file, written at set-up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.types import Index16, ShortText, UInt63
from gridtokenx.devices.models.energy import Spec
from gridtokenx.devices.models.household import HouseholdSpec
from gridtokenx.host.files import read_file
from gridtokenx.interchain.apps.registry import DeviceKind


class DeviceEntry(Spec, frozen=True):
    """One device of a household."""

    kind: Annotated[str, msgspec.Meta(pattern="^(meter|solar|battery)$")]
    key: ShortText
    """Name of its key file."""

    @property
    def device_kind(self) -> DeviceKind:
        """The kind as the registry has it."""
        return DeviceKind[self.kind.upper()]


class HouseholdEntry(Spec, frozen=True):
    """One household."""

    name: ShortText
    """Names its journal file."""
    zone: Index16
    profile: UInt63
    """Its index in the profile file."""
    devices: Annotated[tuple[DeviceEntry, ...], msgspec.Meta(min_length=1, max_length=8)]
    spec: HouseholdSpec


class Roster(Spec, frozen=True):
    """All households of a fleet."""

    households: Annotated[tuple[HouseholdEntry, ...], msgspec.Meta(min_length=1)]

    def encode(self) -> bytes:
        """The file's content."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def household_name(index: int) -> str:
    """The name of a household: ``h07``."""
    return f"h{index:02}"


def make_roster(specs: Sequence[HouseholdSpec], zones: Sequence[int]) -> Roster:
    """A roster of households by index, each device with a key named after it: ``h07-meter``."""
    return Roster(
        households=tuple(
            HouseholdEntry(
                name=household_name(index),
                zone=zone,
                profile=index,
                devices=tuple(
                    DeviceEntry(
                        kind=kind.name.lower(), key=f"{household_name(index)}-{kind.name.lower()}"
                    )
                    for kind in device_kinds(spec)
                ),
                spec=spec,
            )
            for index, (spec, zone) in enumerate(zip(specs, zones, strict=True))
        )
    )


def device_kinds(spec: HouseholdSpec) -> tuple[DeviceKind, ...]:
    """The devices that a household has: its meter, and one for panels and for a battery."""
    kinds = [DeviceKind.METER]
    if spec.solar is not None:
        kinds.append(DeviceKind.SOLAR)
    if spec.battery is not None:
        kinds.append(DeviceKind.BATTERY)
    return tuple(kinds)


def read_roster(path: Path) -> Roster:
    """Read a roster.

    Raises:
        LocalFault: it cannot be read, is no roster, or names something twice.
    """
    try:
        roster = msgspec.json.decode(read_file(path), type=Roster)
    except msgspec.DecodeError as error:
        raise LocalFault(f"{path}: is no roster of households: {error}") from None
    names = [household.name for household in roster.households]
    keys = [device.key for household in roster.households for device in household.devices]
    for listed in (names, keys):
        if len(set(listed)) != len(listed):
            twice = next(name for name in listed if listed.count(name) > 1)
            raise LocalFault(f"{path}: {twice} stands there twice")
    return roster
