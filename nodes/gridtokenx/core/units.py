"""Units and checked amounts.

Money, energy and votes are integers in their smallest unit:

======================  =====================================================
GRID                    10**-9 GRID (nine decimals)
WATT, stable credits    10**-6 WATT (one WATT is one THB)
energy                  Wh
power                   W
price                   micro-WATT per kWh; times Wh gives nano-WATT exactly
======================  =====================================================

Amounts fit a signed 64-bit integer; products are Python integers of any size and come back through
`checked_amount`. Rounding is written where it happens and favours the pool.
"""

from typing import Final

INT64_MAX: Final = 2**63 - 1
GRID: Final = 10**9
WATT: Final = 10**6
NANO_PER_MICRO: Final = 1_000
WH_PER_KWH: Final = 1_000
BASIS_POINTS: Final = 10_000


class AmountError(ArithmeticError):
    """An amount left the range 0 .. 2**63 - 1. Inside a call it fails the call."""


def checked_amount(value: int) -> int:
    """`value`, if it is a valid amount.

    Raises:
        AmountError: negative, or more than 63 bits.
    """
    if not 0 <= value <= INT64_MAX:
        raise AmountError(f"amount {value} is outside 0 .. 2**63-1")
    return value


def ceil_div(numerator: int, denominator: int) -> int:
    """Division rounded up; `denominator` is positive."""
    return -(-numerator // denominator)


def cost_uwatt_up(price_uwatt_per_kwh: int, energy_wh: int) -> int:
    """What a debtor pays: nano-WATT rounded up to micro-WATT."""
    return ceil_div(price_uwatt_per_kwh * energy_wh, NANO_PER_MICRO)


def cost_uwatt_down(price_uwatt_per_kwh: int, energy_wh: int) -> int:
    """What a creditor receives: nano-WATT rounded down to micro-WATT."""
    return price_uwatt_per_kwh * energy_wh // NANO_PER_MICRO
