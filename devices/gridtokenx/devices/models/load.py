"""What a household consumes: its profile, limited by its main breaker."""

from gridtokenx.core.types import UInt63
from gridtokenx.devices.models.energy import Spec


class LoadSpec(Spec, frozen=True):
    """A household's connection, seen from the load."""

    breaker_w: UInt63
    """More than this is never drawn: 15(45) A at 230 V is about 10 kW."""


def consumption_mws(spec: LoadSpec, profile_w: int, duration_ms: int) -> int:
    """Energy consumed in one step."""
    return min(profile_w, spec.breaker_w) * duration_ms
