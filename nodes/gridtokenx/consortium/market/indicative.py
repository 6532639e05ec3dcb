"""The indicative price: what supply and demand in the open book suggest, correctly rounded.

Law: equal parameters and volumes give the same micro-WATT on every machine, and that number is the
true value of the formula rounded to nearest.

Theory (reference/energy.md §1.1, clearing.md)::

    p = p_balance - (2/pi) * p_con * arctan(k * ln(clamp(S/D, m, 1/m)))

`Ours differs:` from the guide's formula in sign (its plus made surplus dear) and scale (its pi/2
let the price go below zero); with 2/pi it stays inside p_balance +- p_con, as the guide says.

How: `decimal`'s logarithm is correctly rounded; arctan and pi are integer series with a bound on
their error. Where the two ends of the interval round differently the precision doubles. That ends:
for rational k other than 0 and a ratio other than 1 the value is transcendental, so it is never
halfway between two micro-WATT.
"""

import decimal
import math
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.consortium.parameters import Section
from gridtokenx.core.types import UInt63

_FIRST_PRECISION_BITS: Final = 160
_HALVINGS: Final = 8
"""Each halves the angle before the series, which then gains about 15 bits a term."""
_ERROR_ULP: Final = 1 << 16
"""Bound on the error of the angle and of pi, in units of the last place.

The argument carries at most 3 ulp (one truncation and two rounded logarithms); each halving adds
less than 4 and the series less than one per term, all doubled by at most `_HALVINGS` doublings:
(3 + 8 * 4 + bits / 14) * 2**8 stays below 2**16 up to 3,000 bits.
"""
_MAX_PRECISION_BITS: Final = 2_560


class IndicativeParameters(Section, frozen=True):
    """Shape of the indicative price."""

    balance_uwatt_per_kwh: UInt63 = 4_000_000
    """p_balance: the price at equal supply and demand."""
    range_uwatt_per_kwh: UInt63 = 2_000_000
    """p_con: the furthest the price moves from it, in either direction."""
    sensitivity_milli: UInt63 = 1_000
    """k, in thousandths."""
    min_ratio_ppm: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """m, in millionths: supply/demand is clamped to [m, 1/m]."""
    update_grid_ms: UInt63 = 300_000
    """Grid time between two price signals."""


DEFAULT_INDICATIVE: Final = IndicativeParameters()
"""The guide's figures: 4.0 +- 2.0 WATT/kWh, k = 1, m = 0.01, every five minutes."""


def indicative_price(parameters: IndicativeParameters, supply_wh: int, demand_wh: int) -> int:
    """The price in micro-WATT/kWh at these volumes; p_balance when there are none."""
    balance = parameters.balance_uwatt_per_kwh
    numerator, denominator = _clamped_ratio(supply_wh, demand_wh, parameters.min_ratio_ppm)
    steepness = parameters.sensitivity_milli * parameters.range_uwatt_per_kwh
    if numerator == denominator or steepness == 0:
        return balance
    bits = _FIRST_PRECISION_BITS
    while bits <= _MAX_PRECISION_BITS:
        angle = _arctan_of_log(numerator, denominator, parameters.sensitivity_milli, bits)
        low, high = _rounded_ends(parameters.range_uwatt_per_kwh, angle, bits)
        if low == high:
            return balance - low
        bits *= 2
    raise AssertionError("unreachable: the value is transcendental, so some precision decides")


def _clamped_ratio(supply_wh: int, demand_wh: int, min_ratio_ppm: int) -> tuple[int, int]:
    """Supply over demand as a fraction inside [m, 1/m]; 1 when both are zero."""
    if supply_wh == demand_wh:
        return 1, 1
    if supply_wh * 1_000_000 < demand_wh * min_ratio_ppm:
        return min_ratio_ppm, 1_000_000
    if demand_wh * 1_000_000 < supply_wh * min_ratio_ppm:
        return 1_000_000, min_ratio_ppm
    return supply_wh, demand_wh


def _rounded_ends(range_uwatt_per_kwh: int, angle: int, bits: int) -> tuple[int, int]:
    """(2/pi) * p_con * angle to the nearest micro-WATT, at both ends of its error interval."""
    pi = _pi(bits)
    # |d(a/pi)| <= (|da| + |dpi| * a/pi) / pi < |da| + |dpi|, as a/pi < 1/2; plus one for the floor.
    error = 2 * range_uwatt_per_kwh * (2 * _ERROR_ULP) + 1
    moved = (2 * range_uwatt_per_kwh * angle << bits) // pi
    half = 1 << (bits - 1)
    return (moved - error + half) >> bits, (moved + error + half) >> bits


def _arctan_of_log(numerator: int, denominator: int, k_milli: int, bits: int) -> int:
    """arctan(k ln(numerator / denominator)) * 2**bits, within `_ERROR_ULP`."""
    # The logarithms are below 2**6 and k below 2**63: this many digits keep k * ln within one ulp.
    digits = (bits + 80) * 31 // 100 + 2
    context = decimal.Context(prec=digits, rounding=decimal.ROUND_HALF_EVEN)
    log = context.subtract(context.ln(numerator), context.ln(denominator))
    top, bottom = log.as_integer_ratio()
    return _arctan((top * k_milli << bits) // (bottom * 1_000), bits)


def _arctan(x: int, bits: int) -> int:
    """arctan(x / 2**bits) * 2**bits: halve the angle, then Taylor's series."""
    one = 1 << bits
    for _ in range(_HALVINGS):
        # tan(a/2) = tan a / (1 + sqrt(1 + tan^2 a))
        x = (x << bits) // (one + math.isqrt((one * one) + x * x))
    square = x * x >> bits
    total, power, divisor = 0, x, 1
    while power // divisor not in {0, -1}:
        total += power // divisor if divisor % 4 == 1 else -(power // divisor)
        power = power * square >> bits
        divisor += 2
    return total << _HALVINGS


def _pi(bits: int) -> int:
    """Pi * 2**bits within `_ERROR_ULP`: Machin, pi = 16 arctan(1/5) - 4 arctan(1/239)."""
    one = 1 << bits
    return 16 * _arctan_inverse(5, one) - 4 * _arctan_inverse(239, one)


def _arctan_inverse(n: int, one: int) -> int:
    """Arctan(1/n) in units of 1/one."""
    total, power, divisor = 0, one // n, 1
    while power:
        total += power // divisor if divisor % 4 == 1 else -(power // divisor)
        power //= n * n
        divisor += 2
    return total
