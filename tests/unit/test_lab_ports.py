"""Ports for networks made on the spot: nobody else's while their taker lives."""

import socket
from pathlib import Path

import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.lab.ports import BLOCK, LOOPBACK, RANGES, Ports, is_free

FIRST = 27_648
"""Above what processes take, below what systems lend."""


def two_blocks(directory: Path, first: int = FIRST) -> Ports:
    return Ports(directory, [range(first, first + 2 * BLOCK)])


def test_two_takers_never_share_a_port(tmp_path: Path) -> None:
    one, other = two_blocks(tmp_path), two_blocks(tmp_path)
    assert set(one.take(100)).isdisjoint(other.take(100))
    assert set(one.take(100)).isdisjoint(other.take(100))
    third = two_blocks(tmp_path)
    with pytest.raises(LocalFault, match="all ports are taken"):
        third.take(1)
    one.release()
    assert third.take(1)
    other.release()
    third.release()


def test_they_are_consecutive_and_what_is_in_use_is_passed_over(tmp_path: Path) -> None:
    first = FIRST + 2 * BLOCK  # other tests may run beside this one, and use all of theirs
    taker = two_blocks(tmp_path, first)
    with socket.create_server((LOOPBACK, first + 3)):
        assert not is_free(first + 3)
        assert taker.take(5) == list(range(first + 4, first + 9))
    taker.release()


def test_a_taker_of_many_goes_on_from_the_first(tmp_path: Path) -> None:
    taker = two_blocks(tmp_path)
    blocks = [taker.take(BLOCK) for _ in range(3)]
    assert blocks[0] != blocks[1]
    assert blocks[2] == blocks[0]
    with pytest.raises(ValueError, match="at once"):
        taker.take(BLOCK + 1)
    taker.release()


def test_a_place_without_room_for_locks_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocalFault, match=r"file/locks/ports-27648\.lock: cannot be locked"):
        two_blocks(tmp_path / "file" / "locks").take(1)


def test_no_range_reaches_what_systems_lend_or_networks_take() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for each in RANGES:
        assert each.stop <= low
        assert len(each) % BLOCK == 0
        assert not {18_080, 26_600, 19_080, 29_600} & set(each)
