"""Lines that strangers cause: one per reason, then a number per minute."""

from tests.unit.host_network import LOOPBACK, Node, addresses, until

from gridtokenx.host.logs import NullLogger, SparseLog
from gridtokenx.lab.ports import free_ports


class Lines(NullLogger):
    """Keeps what is written."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_line_is_written_and_the_others_are_counted() -> None:
    lines, clock = Lines(), Clock()
    sparse = SparseLog(lines, clock=clock)
    for number in range(42):
        sparse.info("link refused", "timeout", number=number, reason="timeout")
        clock.now += 1
    sparse.info("link refused", "banned", number=99)
    assert [fields["number"] for _, fields in lines.lines] == [0, 99]
    lines.lines.clear()
    clock.now = 60
    sparse.flush()
    assert lines.lines == [
        ("link refused: and 41 more in the last minute", {"number": 41, "reason": "timeout"})
    ]


def test_a_flood_that_goes_on_costs_a_line_a_minute_and_one_that_ends_is_forgotten() -> None:
    lines, clock = Lines(), Clock()
    sparse = SparseLog(lines, clock=clock)
    for _ in range(2400):
        sparse.warning("a node lies", "wrong-link")
        clock.now += 0.125
    assert [event for event, _ in lines.lines] == [
        "a node lies",
        *["a node lies: and 479 more in the last minute"],
        *["a node lies: and 480 more in the last minute"] * 3,
    ]
    clock.now += 60
    sparse.flush()
    clock.now += 60
    sparse.flush()
    lines.lines.clear()
    sparse.warning("a node lies", "wrong-link")
    assert lines.lines == [("a node lies", {})]


def test_reasons_are_bounded() -> None:
    lines, clock = Lines(), Clock()
    sparse = SparseLog(lines, clock=clock)
    for number in range(10_000):
        sparse.info("link up", str(number))
    assert len(lines.lines) == SparseLog.REASONS + 1
    clock.now = 61
    sparse.flush()
    assert lines.lines[-1][0] == f"link up: and {9_999 - SparseLog.REASONS} more in the last minute"


async def test_a_twin_floods_no_log() -> None:
    """It is refused several times a second for as long as it runs."""
    ports = free_ports(2)
    known = addresses([0, 1], ports)
    lines = Lines()
    host = Node(0, known, log=lines)
    first, twin = Node(1, known[:1]), Node(1, known[:1])
    host.network.start(LOOPBACK)
    for node in (first, twin):
        node.network._peers = (host.address,)
    first.network.start(None)
    await until(lambda: host.network.members)
    twin.network.start(None)
    try:
        await until(lambda: host.faults.get("identity-in-use", 0) >= 6, 20)
        assert [event for event, fields in lines.lines if "identity" in str(fields)] == [
            "link refused"
        ]
        assert host.recorder.down == []
    finally:
        for node in (host, first, twin):
            await node.network.close()
