"""A voltage sensor at a household's connection point.

A radial low-voltage feeder is mostly resistive: each watt drawn lowers, and each watt fed in
raises, the local voltage by nearly the same amount. The sensor has a fixed gain error and a
resolution.
"""

from gridtokenx.core.types import UInt63
from gridtokenx.devices.models.energy import PPM, Spec
from gridtokenx.devices.models.meter import Gain
from gridtokenx.ledger.readings import FLAG_VOLTAGE_HIGH, FLAG_VOLTAGE_LOW


class VoltageSpec(Spec, frozen=True):
    """The connection point and the sensor on it."""

    no_load_mv: UInt63
    """Voltage with no flow, in millivolts."""
    drop_uv_per_w: UInt63
    """Microvolts by which one watt of import lowers the voltage."""
    gain_ppm: Gain
    """The sensor's constant gain error."""
    resolution_mv: UInt63
    """The smallest step it shows; at least 1."""
    low_mv: UInt63
    """Below this it raises `FLAG_VOLTAGE_LOW`."""
    high_mv: UInt63
    """Above this it raises `FLAG_VOLTAGE_HIGH`."""


def measure_mv(spec: VoltageSpec, net_power_w: int) -> int:
    """The shown voltage while `net_power_w` is imported (negative: exported)."""
    true_uv = max(0, spec.no_load_mv * 1_000 - net_power_w * spec.drop_uv_per_w)
    shown_mv = true_uv * (PPM + spec.gain_ppm) // (PPM * 1_000)
    return shown_mv - shown_mv % spec.resolution_mv


def voltage_flags(spec: VoltageSpec, net_power_w: int) -> int:
    """The reading flags that the present voltage calls for."""
    voltage_mv = measure_mv(spec, net_power_w)
    if voltage_mv < spec.low_mv:
        return FLAG_VOLTAGE_LOW
    return FLAG_VOLTAGE_HIGH if voltage_mv > spec.high_mv else 0
