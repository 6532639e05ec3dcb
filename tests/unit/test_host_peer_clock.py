"""A clock that is off is noticed by the others' answers, said once, and never believed of one liar."""

import re
import time

import pytest
from tests.unit.host_network import Node, addresses, until

from gridtokenx.host.addresses import HostPort
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.peer_clock import PeerClock, middle
from gridtokenx.lab.ports import free_ports
from gridtokenx.pbft.timing import Timing


@pytest.mark.parametrize(
    ("offsets", "tolerated", "expected"),
    [
        ([], 0, None),
        ([5_000], 0, 5_000),
        ([5_000], 1, None),  # the only voice may be the liar's
        ([90_000, 10], 1, 10),
        ([-90_000, 90_000], 1, 0),  # ours is between them
        ([-90_000, -10], 1, -10),
        ([10, 20, 90_000], 1, 20),
        ([10, 180_000, 180_100], 1, 180_000),
        ([-1, 0, 1, 99_999], 1, 0),
    ],
)
def test_the_middle_is_no_liars(offsets: list[int], tolerated: int, expected: int | None) -> None:
    assert middle(offsets, tolerated) == expected


class Lines(NullLogger):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, event: str, **fields: object) -> None:
        self.lines.append(f"info {event}")

    def warning(self, event: str, **fields: object) -> None:
        self.lines.append(f"warning {event}: {fields['why']}")

    def error(self, event: str, **fields: object) -> None:
        self.lines.append(f"error {event}: {fields['why']}")


def test_each_level_is_said_once() -> None:
    lines, metrics = Lines(), Metrics()
    clock = PeerClock(lines, metrics)
    for offset in (0, 500, -2_500, -2_600, -1_900, -2_100, -184_000, -184_000, -9_000, -100):
        clock.look([offset] * 3, 1)
        expected = ["clock is 184 s ahead of the median of 3 peers; check NTP"]
        assert list(clock.reasons()) == (expected if offset == -184_000 else [])[
            : len(expected)
        ] or (offset == -9_000)
    assert lines.lines == [
        "warning clock is off: clock is 2 s ahead of the median of 3 peers; check NTP",
        "error clock is wrong: clock is 184 s ahead of the median of 3 peers; check NTP",
        "info clock agrees again with the others",
    ]
    assert b"gtx_clock_offset_seconds 0.1" in metrics.render()


@pytest.mark.parametrize("ahead", [-1, 1])
def test_who_votes_for_nobodys_block_is_not_ready(ahead: int) -> None:
    """Regression: from 5 s on a replica took no part, and up to 10 s it said that it was ready."""
    clock, bound_ms = PeerClock(NullLogger(), Metrics()), Timing().clock_bound_ms
    clock.look([ahead * (bound_ms - 500)] * 3, 1)
    assert not list(clock.reasons())
    clock.look([ahead * (bound_ms + 500)] * 3, 1)
    assert list(clock.reasons())


async def test_linked_nodes_compare_their_clocks() -> None:
    ports = free_ports(4)
    known = addresses(range(4), ports)
    late = 184_000
    nodes = [
        Node(number, known, now_ms=lambda n=number: time.time_ns() // 10**6 - late * (n == 0))
        for number in range(4)
    ]
    for node, port in zip(nodes, ports, strict=True):
        node.network.start(HostPort("127.0.0.1", port))
    try:
        await until(lambda: list(nodes[0].network.reasons()))
        assert list(nodes[0].network.reasons()) == [
            "clock is 184 s behind the median of 3 peers; check NTP"
        ]
        shown = re.compile(rb"gtx_clock_offset_seconds -?0\.")
        await until(lambda: shown.search(nodes[1].metrics.render()))
        assert all(not list(node.network.reasons()) for node in nodes[1:])
    finally:
        for node in nodes:
            await node.network.close()
