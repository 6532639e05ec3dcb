"""Laws of packets under any order of sending, relaying, refusing, expiring and racing relayers.

The schedule is random; the relayers are honest but clumsy: they prove by any header that a client
has, deliver twice, late, or never. After every block the ledgers' own invariants hold (each
packet ended once or is open; the probe app asserts that it hears once) and so does the
conservation of tokens at a consistent cut.
"""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.interchain_chains import (
    ALICE,
    BLOCK_MS,
    BOB,
    GRID,
    Link,
    Poke,
    TestChain,
    public_and_consortium,
)
from tests.stages import examples

from gridtokenx.core.codec import Wire
from gridtokenx.interchain import stores
from gridtokenx.interchain.apps.transfer import SendTransfer, TransferLimit, escrow_account
from gridtokenx.interchain.audit import conservation_gap
from gridtokenx.interchain.packets import Packet

VOUCHER = "public/grid"
HARMLESS = {
    "ok",
    "kept out",
    "packet-expired",
    "not-expired",
    "bad-proof",
    "header-from-future",
    "stale-header",
}
"""How a relayer's call may end when it comes late, early or twice: nothing happened."""


@dataclass
class World:
    """Two chains, and every packet that was ever sent."""

    link: Link = field(
        default_factory=lambda: public_and_consortium([TransferLimit(VOUCHER, 5 * BLOCK_MS, 60)])
    )
    sent: list[tuple[TestChain, Packet]] = field(default_factory=list)

    def note_sent(self, source: TestChain) -> None:
        client = self.link.clients(source)[1]
        known = {(id(chain), packet.sequence) for chain, packet in self.sent}
        for packet in source.packets(client):
            if (id(source), packet.sequence) not in known:
                self.sent.append((source, packet))

    def check(self) -> None:
        link = self.link
        away = link.right.blocks[link.known(link.left)].state
        home = link.left.head.state
        assert conservation_gap(home.get, away.get, "consortium", "public", GRID) == 0
        away_watt = link.left.blocks[link.known(link.right)].state
        gap = conservation_gap(
            link.right.head.state.get, away_watt.get, "public", "consortium", "watt"
        )
        assert gap == 0

    def receipts(self, source: TestChain, packet: Packet) -> bool:
        destination, _, theirs = self.link.clients(source)
        return stores.RECEIPTS.has(destination.state, theirs, packet.sequence)


@dataclass(frozen=True)
class Step:
    """One draw; what does not apply to the moment is skipped."""

    left: bool
    action: str
    pick: int
    behind: int
    amount: int
    after_ms: int


STEPS = st.lists(
    st.builds(
        Step,
        left=st.booleans(),
        action=st.sampled_from(
            [
                "send",
                "send",
                "return",
                "poke",
                "relay",
                "relay",
                "relay",
                "twice",
                "ack",
                "ack",
                "timeout",
                "idle",
                "sweep",
            ]
        ),
        pick=st.integers(0, 30),
        behind=st.integers(0, 3),
        amount=st.integers(1, 90),
        after_ms=st.sampled_from([1, BLOCK_MS, BLOCK_MS, 4 * BLOCK_MS, 9 * BLOCK_MS]),
    ),
    max_size=40,
)


def take(world: World, step: Step) -> None:
    """Carry out one step as one block."""
    link = world.link
    at = link.left if step.left else link.right
    batch, by = list(chosen_calls(world, step, at)), RELAYERS[step.pick % 2]
    if step.action in ("send", "return", "poke"):
        by = ALICE if step.left else BOB
    codes = at.block(*batch, by=by, after_ms=step.after_ms)
    if step.action in ("relay", "twice", "ack", "timeout", "sweep"):
        assert set(codes) <= HARMLESS | {"unknown-header"}, codes
    world.note_sent(at)
    world.check()


RELAYERS = [BOB, ALICE]


def chosen_calls(world: World, step: Step, at: TestChain) -> list[Wire]:
    client = world.link.clients(at)[1]
    until = at.now_ms + step.after_ms + step.amount * 600
    receiver = BOB if step.left else ALICE
    match step.action:
        case "send":
            denom = GRID if step.left else "watt"
            return [SendTransfer(client, denom, step.amount, receiver.public_key, until)]
        case "return":
            denom = "consortium/watt" if step.left else VOUCHER
            return [SendTransfer(client, denom, step.amount, receiver.public_key, until)]
        case "poke":
            return [Poke(client, b"refuse" if step.pick % 3 else b"fine", until)]
        case "idle":
            return []
        case _:
            return relay_calls(world, step, at)


def relay_calls(world: World, step: Step, at: TestChain) -> list[Wire]:
    link = world.link
    other = link.clients(at)[0]
    if other.head.height == 0:
        return []
    behind = max(1, other.head.height - step.behind)
    update = [link.update(at, behind)]
    height = max(link.known(at), behind)
    if step.action == "sweep":
        inbound = [packet for chain, packet in world.sent if chain is other]
        return update + [link.receive(at, packet, height) for packet in inbound[-20:]]
    source_wanted = other if step.action in ("relay", "twice") else at
    packets = [packet for chain, packet in world.sent if chain is source_wanted]
    if not packets:
        return []
    packet = packets[step.pick % len(packets)]
    if step.action in ("relay", "twice"):
        receive = link.receive(at, packet, height)
        return [*update, receive, receive] if step.action == "twice" else [*update, receive]
    if step.action == "timeout":
        return [*update, link.timeout(at, packet, height)]
    if world.receipts(at, packet):
        return [*update, link.acknowledge(at, packet, height)]
    return update


@given(STEPS)
@settings(max_examples=examples(60), deadline=None)
def test_packets_end_once_and_tokens_are_conserved(steps: list[Step]) -> None:
    world = World()
    for step in steps:
        take(world, step)
    settle(world)


def settle(world: World) -> None:
    """Honest relaying after every timeout: nothing stays open, and every token is somewhere."""
    link = world.link
    for _ in range(2):
        for at in (link.left, link.right):
            at.block(after_ms=60 * BLOCK_MS)
    level(link)
    for at in (link.left, link.right):
        finish(link, at)
    world.check()
    for at in (link.left, link.right):
        client = link.clients(at)[1]
        assert at.packets(client) == []
        assert stores.channel(at.state, client).open_packets == 0
    supply = link.left.tokens.supply(link.left.state, GRID)
    away = link.right.tokens.supply(link.right.state, VOUCHER)
    escrow = link.left.tokens.balance(link.left.state, GRID, escrow_account("consortium"))
    assert (supply, escrow) == (1_000, away)


def level(link: Link) -> None:
    """Bring both clocks past every timeout, and both clients up to date."""
    latest = max(link.left.now_ms, link.right.now_ms)
    for at in (link.left, link.right):
        at.block(after_ms=latest + BLOCK_MS - at.now_ms)
    for at in (link.left, link.right):
        assert set(at.block(link.update(at))) == {"ok"}


def finish(link: Link, at: TestChain) -> None:
    other, client, theirs = link.clients(at)
    height = link.known(at)
    for packet in at.packets(client):
        known = other.blocks[height].state.get(stores.RECEIPTS.key(theirs, packet.sequence))
        call = link.timeout(at, packet) if known is None else link.acknowledge(at, packet)
        assert at.block(call) == ["ok"]
