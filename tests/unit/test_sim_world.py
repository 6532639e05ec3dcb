"""The simulated world's clocks, disks, twins and distributions, each by itself."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.machine import Write
from gridtokenx.lab.sim.links import _ring
from gridtokenx.lab.sim.network import Drop, Envelope, LinkProfile
from gridtokenx.lab.sim.store import SimulatedStore
from gridtokenx.lab.sim.world import SimulatedNode


def node() -> SimulatedNode:
    return SimulatedNode(b"n", "", lambda reader: None, 0)


def batch(key: bytes, value: bytes = b"v") -> tuple[Write, ...]:
    return (Write("t", key, value), Write("t", key + b"2", value))


@given(
    st.integers(-100_000, 100_000),
    st.integers(-400_000, 400_000),
    st.integers(0, 10**7),
    st.integers(0, 10**6),
)
def test_a_timer_is_never_early_by_the_nodes_own_clock(
    offset_ms: int, drift_ppm: int, now: int, wait_ms: int
) -> None:
    clock = node()
    clock.clock_offset_ms = offset_ms
    clock.set_drift(1_000, drift_ppm)
    due = clock.local_ms(now + 1_000) + wait_ms
    waits = clock.until_ms(now + 1_000, due)
    assert clock.local_ms(now + 1_000 + waits) >= due
    tick_ms = -(-1_000_000 // (1_000_000 + drift_ppm))
    """After which its clock shows another millisecond for sure."""
    assert waits == 0 or clock.local_ms(now + 1_000 + waits - 1 - tick_ms) < due


def test_a_change_of_drift_does_not_move_the_clock() -> None:
    clock = node()
    clock.set_drift(0, 100_000)
    shown = clock.local_ms(50_000)
    assert shown == 55_000
    clock.set_drift(50_000, 0)
    assert clock.local_ms(50_000) == shown
    assert clock.local_ms(60_000) == shown + 10_000


def test_batches_that_wait_for_a_sync_share_the_next_one() -> None:
    disk = node()
    assert [disk.sync_until_ms(0, 10), disk.sync_until_ms(1, 10), disk.sync_until_ms(9, 5)] == [
        10,
        20,
        20,
    ]
    assert disk.sync_until_ms(12, 10) == 30, "the second sync is under way; this is the third"
    assert disk.sync_until_ms(100, 10) == 110


def test_a_disk_that_lies_loses_what_it_confirmed() -> None:
    store = SimulatedStore()
    store.write(batch(b"a"))
    store.sync()
    store.lies = True
    store.write(batch(b"b"))
    store.sync()
    assert store.get("t", b"b") == b"v"
    store.crash(keep=9)
    assert (store.get("t", b"a"), store.get("t", b"b")) == (b"v", None)


def test_a_disk_that_lied_and_flushed_keeps_it() -> None:
    store = SimulatedStore()
    store.lies = True
    store.write(batch(b"a"))
    store.sync()
    assert store.durable_get("t", b"a") is None
    store.lies = False
    store.flush()
    store.crash(0)
    assert store.get("t", b"a") == b"v"


def test_a_torn_write_leaves_a_part_of_a_batch() -> None:
    store = SimulatedStore()
    store.write(batch(b"a"))
    store.crash(keep=0, torn=1)
    assert (store.get("t", b"a"), store.get("t", b"a2")) == (b"v", None)


def test_a_flipped_bit_ends_whoever_reads_it_until_it_is_written_again() -> None:
    store = SimulatedStore()
    store.write((Write("t", b"a", b"v"),))
    store.sync()
    store.flip_bit(random.Random(1))
    with pytest.raises(LocalFault, match="checksum"):
        store.get("t", b"a")
    with pytest.raises(LocalFault, match="checksum"):
        list(store.scan("t"))
    store.write((Write("t", b"a", b"w"),))
    assert store.get("t", b"a") == b"w"


@pytest.mark.parametrize(
    ("spread", "mean", "most"),
    [("uniform", 60, 110), ("exponential", 110, 800), ("heavy", 110, 1_300)],
)
def test_delays_have_the_mean_that_the_manifest_says(spread: str, mean: int, most: int) -> None:
    draw, profile = random.Random(5), LinkProfile((10, 110), spread=spread)
    delays = [profile.delay(draw) for _ in range(20_000)]
    assert min(delays) >= 10
    assert max(delays) <= most
    assert abs(sum(delays) / len(delays) - mean) < 8


@given(st.integers(4, 30))
def test_in_a_ring_everybody_reaches_a_majority_and_nobody_everybody(size: int) -> None:
    places = [bytes((index,)) for index in range(size)]
    rule = _ring(places)
    for sender in places:
        reached = [
            other
            for other in places
            if not isinstance(rule(Envelope(0, sender, other, None)), Drop)
        ]
        assert size // 2 < len(reached) < size
