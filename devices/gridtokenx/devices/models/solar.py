"""Panels behind an inverter.

The profile already holds the panels' direct-current power after irradiance, clouds and cell
temperature (`fleet/profiles.py` makes it once, with floats). What is left is integer: conversion
loss and clipping at the inverter's rating.
"""

from gridtokenx.core.types import UInt63
from gridtokenx.devices.models.energy import PPM, Spec


class SolarSpec(Spec, frozen=True):
    """An inverter and its panels."""

    inverter_ac_w: UInt63
    """The most the inverter delivers; a battery on the same inverter shares this limit."""
    inverter_efficiency_ppm: UInt63
    """Direct to alternating current, constant over the load range."""


def generation_mws(spec: SolarSpec, panel_w: int, duration_ms: int) -> int:
    """Energy delivered on the alternating-current side in one step."""
    converted = panel_w * duration_ms * spec.inverter_efficiency_ppm // PPM
    return min(converted, spec.inverter_ac_w * duration_ms)
