"""The gateway's index: rows follow from blocks alone, one block at a time, whatever happens between."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.gateway_world import CLOCK, FIRST, NETWORK_MS, Story, key, make_facts, signer

from gridtokenx.consortium.market import messages as market
from gridtokenx.consortium.market.auction import Rule, Side
from gridtokenx.consortium.settlement.messages import IntervalSettled, Statement
from gridtokenx.consortium.settlement.statement import Item, Line
from gridtokenx.core.addresses import address
from gridtokenx.core.codec import Wire
from gridtokenx.gateway.facts import CONSORTIUM, ORACLE, PUBLIC, ROUTES
from gridtokenx.gateway.index import Index, is_damage
from gridtokenx.gateway.ports import ForeignBlock, Unavailable
from gridtokenx.gateway.queries import Queries
from gridtokenx.host.chains import CHAINS
from gridtokenx.interchain import calls
from gridtokenx.interchain.packets import Delivered, Packet, Refused
from gridtokenx.ledger.readings import SubmitReading
from gridtokenx.ledger.runtime import OK, CallResult, Executed
from gridtokenx.ledger.transactions import sign_transaction
from gridtokenx.oracle.chain.feeds import RoundClosed, ValuePublished
from gridtokenx.oracle.chain.meters import IntervalClosed, Outcome
from gridtokenx.oracle.chain.rounds import Outcome as RoundOutcome
from gridtokenx.oracle.chain.rounds import Status
from gridtokenx.public import rec

FACTS = make_facts()
PRICE = 3_700_000


class World:
    """An index and the three chains that feed it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = Index(path, FACTS)
        self.queries = Queries(self.index, FACTS)
        self.story = {chain: Story(FACTS, chain) for chain in CHAINS}

    def on(self, chain: str, *events: Wire, **more: object) -> None:
        self.index.apply(chain, self.story[chain].block(*events, **more))

    def reopen(self) -> None:
        self.index.close()
        self.index = Index(self.path, FACTS)
        self.queries = Queries(self.index, FACTS)

    def status(self) -> dict[str, object]:
        return self.queries.status(NETWORK_MS + 10_000)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "index.sqlite")
    yield made
    made.index.close()


def opened(interval: int = FIRST + 2, zone: int = 0) -> market.BookOpened:
    return market.BookOpened(zone, interval, NETWORK_MS + 55_000, PRICE, 2_200_000, 4_800_000)


def placed(order_id: int, name: str, side: Side, limit: int, energy_wh: int) -> market.OrderPlaced:
    return market.OrderPlaced(
        order_id, key(name), order_id, 0, FIRST + 2, side, limit, energy_wh, 5_000
    )


def closed(order_id: int, name: str, side: Side, filled_wh: int) -> market.OrderClosed:
    return market.OrderClosed(order_id, key(name), order_id, side, filled_wh)


def cleared(price: int | None = PRICE, trades: int = 1) -> market.AuctionCleared:
    rule = Rule.MAXIMUM_VOLUME if price else Rule.NO_TRADE
    return market.AuctionCleared(0, FIRST + 2, price, 600, 1_000, 600, 2, trades, rule)


def hold_an_auction(world: World) -> None:
    world.on(
        CONSORTIUM,
        opened(),
        placed(1, "bob", Side.BUY, 5_000_000, 1_000),
        placed(2, "alice", Side.SELL, 3_000_000, 600),
        placed(3, "bob", Side.BUY, 4_000_000, 100),
    )
    world.on(CONSORTIUM, market.OrderCancelled(3, key("bob"), 3, "owner"))
    world.on(
        CONSORTIUM,
        closed(1, "bob", Side.BUY, 600),
        closed(2, "alice", Side.SELL, 600),
        market.TradeMatched(0, FIRST + 2, 1, 2, key("bob"), key("alice"), 600, PRICE),
        cleared(),
    )


# -- chains ----------------------------------------------------------------------------------------


def test_an_empty_index_has_the_status_of_a_network_that_has_not_begun(world: World) -> None:
    status = world.status()
    assert list(status) == [
        "network", "network_ms", "grid_time", "chains", "readings", "market", "settlements",
        "certificates", "packets",
    ]  # fmt: skip
    assert status["grid_time"] == "2026-04-22T09:10:00+07:00"
    assert status["chains"] == {
        chain: {
            "height": 0, "finalized": 0, "leader": None, "interval_p50_ms": None, "lag_ms": None,
        }
        for chain in CHAINS
    }  # fmt: skip
    assert status["market"] == {
        "price_uwatt_per_kwh": None,
        "auctions_held": 0,
        "auctions_cleared": 0,
        "last_auction": None,
    }
    assert status["packets"] == {
        route: {"sent": 0, "delivered": 0, "timed_out": 0} for route in ROUTES
    }


def test_heights_pace_leaders_and_lag_follow_the_headers(world: World) -> None:
    for _ in range(4):
        world.on(CONSORTIUM)
    world.on(PUBLIC)
    chains = world.status()["chains"]
    assert chains[CONSORTIUM] == {
        "height": 4,
        "finalized": 4,
        "leader": "consortium-0",
        "interval_p50_ms": 1_000,
        "lag_ms": 6_000,
    }
    assert chains[PUBLIC]["leader"] == "public-1"
    assert chains[PUBLIC]["interval_p50_ms"] is None
    headers = world.queries.headers(CONSORTIUM, 2)
    assert [each["height"] for each in headers] == [4, 3]
    assert headers[0]["parent"] == headers[1]["hash"]


def test_following_goes_on_after_the_last_block_of_an_earlier_life(world: World) -> None:
    hold_an_auction(world)
    before = world.status()
    world.reopen()
    assert world.index.rebuilds == 0
    assert world.status() == before
    cursor = world.index.cursor(CONSORTIUM)
    assert cursor is not None
    assert (cursor.height, cursor.block_hash) == (3, world.story[CONSORTIUM].parent)
    assert cursor.validators == FACTS.chains[CONSORTIUM].validators
    world.on(CONSORTIUM)


def test_a_block_is_taken_once_and_in_order(world: World) -> None:
    first, second = (world.story[CONSORTIUM].block() for _ in range(2))
    with pytest.raises(ForeignBlock):
        world.index.apply(CONSORTIUM, second)
    world.index.apply(CONSORTIUM, first)
    with pytest.raises(ForeignBlock):
        world.index.apply(CONSORTIUM, first)
    other = Story(make_facts(salt=1), CONSORTIUM)
    other.height, other.parent = 1, first.header.hash
    with pytest.raises(ForeignBlock):
        world.index.apply(CONSORTIUM, other.block())
    world.index.apply(CONSORTIUM, second)


def test_a_block_that_fails_half_way_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gridtokenx.gateway.projection import BlockWriter

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk full")

    block = world.story[CONSORTIUM].block(opened(), placed(1, "bob", Side.BUY, 5_000_000, 100))
    with monkeypatch.context() as patch:
        patch.setattr(BlockWriter, "_move_cursor", fail)
        with pytest.raises(sqlite3.OperationalError):
            world.index.apply(CONSORTIUM, block)
    assert world.queries.orders(None, None, None, 10) == []
    assert world.index.cursor(CONSORTIUM) is None
    world.index.apply(CONSORTIUM, block)
    assert len(world.queries.orders(None, None, None, 10)) == 1


# -- files that can not be used --------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["garbage", "torn", "older", "cursor", "empty"])
def test_a_damaged_or_older_index_is_made_anew(world: World, damage: str) -> None:
    hold_an_auction(world)
    world.index.close()
    connection = sqlite3.connect(world.path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if damage == "older":
        connection.execute("PRAGMA user_version = 0")
    if damage == "cursor":
        connection.execute("UPDATE cursors SET height = height + 1")
        connection.commit()
    connection.close()
    raw = world.path.read_bytes()
    if damage == "garbage":
        world.path.write_bytes(b"not a database " * 1_000)
    if damage == "torn":
        world.path.write_bytes(raw[: len(raw) // 2])
    if damage == "empty":
        world.path.write_bytes(b"")
    world.reopen()
    assert world.index.rebuilt_because
    assert world.index.cursor(CONSORTIUM) is None
    world.story = {chain: Story(FACTS, chain) for chain in CHAINS}
    hold_an_auction(world)
    assert world.status()["market"]["auctions_cleared"] == 1


def test_the_index_of_another_network_is_put_away(world: World) -> None:
    world.on(PUBLIC)
    world.index.close()
    other = Index(world.path, make_facts(salt=1))
    assert other.rebuilt_because == "it is of another network"
    assert other.cursor(PUBLIC) is None
    other.close()


def test_damage_found_by_a_question_is_repaired(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_an_auction(world)

    class Broken:
        def execute(self, *_: object) -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

        def close(self) -> None:
            pass

    monkeypatch.setattr(world.index, "connection", Broken())
    with pytest.raises(Unavailable, match="malformed"):
        world.queries.markets()
    assert world.index.rebuilds == 1
    assert world.index.cursor(CONSORTIUM) is None
    assert not is_damage(sqlite3.OperationalError("database or disk is full"))


# -- market ----------------------------------------------------------------------------------------


def test_an_auction_with_its_orders_and_trades(world: World) -> None:
    hold_an_auction(world)
    market_ = world.status()["market"]
    assert market_["auctions_held"] == market_["auctions_cleared"] == 1
    assert market_["last_auction"] == {
        "product": "zone-0/2026-04-22T10:00",
        "price_uwatt_per_kwh": PRICE,
        "energy_wh": 600,
        "trades": 1,
    }
    orders = world.queries.orders(None, None, None, 10)
    assert [(each["order_id"], each["status"], each["filled_wh"]) for each in orders] == [
        (3, "cancelled", 0),
        (2, "filled", 600),
        (1, "partly_filled", 600),
    ]
    assert [o["order_id"] for o in world.queries.orders(key("bob"), 0, "cancelled", 9)] == [3]
    assert world.queries.orders(key("bob"), 1, None, 9) == []
    (auction,) = world.queries.auctions(0, 10)
    assert (auction["status"], auction["rule"]) == ("cleared", "maximum-volume")


def test_the_book_of_the_next_gate_adds_up_open_orders_by_limit(world: World) -> None:
    assert world.queries.book(0) is None
    world.on(
        CONSORTIUM,
        opened(FIRST + 3),
        opened(),
        placed(1, "bob", Side.BUY, 5_000_000, 100),
        placed(2, "bob", Side.BUY, 5_000_000, 200),
        placed(3, "bob", Side.BUY, 4_000_000, 50),
        placed(4, "alice", Side.SELL, 3_000_000, 70),
    )
    book = world.queries.book(0)
    assert book is not None
    assert book["product"] == "zone-0/2026-04-22T10:00"
    assert book["buy"] == [
        {"limit_uwatt_per_kwh": 5_000_000, "energy_wh": 300, "orders": 2},
        {"limit_uwatt_per_kwh": 4_000_000, "energy_wh": 50, "orders": 1},
    ]
    assert book["sell"] == [{"limit_uwatt_per_kwh": 3_000_000, "energy_wh": 70, "orders": 1}]
    world.on(CONSORTIUM, market.AuctionVoided(0, FIRST + 2, 4))
    assert world.queries.book(0)["interval"] == FIRST + 3
    assert world.queries.auctions(0, 1)[0]["status"] == "void"
    assert world.status()["market"]["auctions_held"] == 0


def test_price_signals(world: World) -> None:
    signal = market.PriceSignalUpdated(1, FIRST + 2, 1_776_823_500_000, PRICE, 10, 20)
    world.on(CONSORTIUM, signal, msgspec.structs.replace(signal, price_uwatt_per_kwh=PRICE + 1))
    assert world.status()["market"]["price_uwatt_per_kwh"] == PRICE + 1
    assert [s["price_uwatt_per_kwh"] for s in world.queries.signals(1, 5)] == [PRICE + 1, PRICE]
    assert world.queries.signals(0, 5) == []
    assert world.queries.markets()[1]["price_uwatt_per_kwh"] == PRICE + 1


def test_a_statement_in_parts_keeps_all_its_lines(world: World) -> None:
    lines = [Line(FIRST + n, 0, Item.SALE, 600, PRICE, 2_220_000_000) for n in range(3)]
    world.on(
        CONSORTIUM,
        Statement(FIRST + 2, key("alice"), tuple(lines[:2]), 0, 0),
        Statement(FIRST + 2, key("alice"), tuple(lines[2:]), 6_660_000, 6_660_000),
    )
    statement = world.queries.statement(key("alice"))
    assert statement is not None
    assert [line["interval"] for line in statement["lines"]] == [FIRST, FIRST + 1, FIRST + 2]
    assert statement["net_uwatt"] == 6_660_000
    world.on(CONSORTIUM, Statement(FIRST + 3, key("alice"), tuple(lines[:1]), 1, 1))
    assert len(world.queries.statement(key("alice"))["lines"]) == 1


def test_settlement_counts_metered_intervals_and_the_trades_they_paid(world: World) -> None:
    hold_an_auction(world)
    line = Line(FIRST + 2, 0, Item.SALE, 600, PRICE, 2_220_000_000)
    numbers = dict.fromkeys(IntervalSettled.__struct_fields__, 7)
    settled = IntervalSettled(**{**numbers, "interval": FIRST + 2, "metered": True})
    world.on(
        CONSORTIUM,
        Statement(FIRST + 2, key("alice"), (line,), 2_220_000, 2_220_000),
        settled,
        msgspec.structs.replace(settled, interval=FIRST + 1, metered=False),
    )
    assert world.status()["settlements"] == {"intervals": 1, "trades": 1}
    statement = world.queries.statement(key("alice"))
    assert statement is not None
    assert statement["lines"][0]["item"] == "sale"
    assert world.queries.statement(key("bob")) is None
    newest = world.queries.settlements(1)[0]
    assert (newest["interval"], newest["contracted_wh"], newest["metered"]) == (FIRST + 2, 7, True)


# -- oracle chain ----------------------------------------------------------------------------------


def reading(nonce: int) -> object:
    call = SubmitReading(1_776_825_000_000, 5, 0, 0, 0, 0)
    return sign_transaction(signer("meter"), FACTS.chains[ORACLE].chain_id, nonce, [call])


def test_readings_are_counted_by_what_became_of_them(world: World) -> None:
    good, bad = reading(1), reading(2)
    refused = CallResult("register-backwards", "4 Wh after 5 Wh")
    world.on(
        ORACLE,
        Executed(good.id, (OK,)),
        Executed(bad.id, (refused,)),
        Executed(bytes(32), (OK,)),
        transactions=(good, bad),
    )
    assert world.status()["readings"] == {"verified": 1, "rejected": 1}
    receipt = world.queries.receipt(bad.id)
    assert receipt is not None
    assert receipt["results"] == [{"code": "register-backwards", "message": "4 Wh after 5 Wh"}]
    assert world.queries.receipt(b"?" * 32) is None
    assert "register-backwards" in str(world.queries.events(0, 9)) or "4 Wh" in str(
        world.queries.events(0, 9)
    )


def test_intervals_and_feeds(world: World) -> None:
    outcome = Outcome(FIRST, bytes(32), 24, 24, 5_000, 2_000, 3_000, 2, 0, 0, NETWORK_MS)
    world.on(
        ORACLE,
        IntervalClosed(outcome),
        RoundClosed("energy-price", RoundOutcome(4, Status.FRESH, 3_900_000, 4, NETWORK_MS)),
        RoundClosed("energy-price", RoundOutcome(5, Status.STALE, 0, 1, NETWORK_MS)),
        ValuePublished("energy-price", RoundOutcome(4, Status.FRESH, 3_900_000, 4, NETWORK_MS)),
    )
    (interval,) = world.queries.intervals(5)
    assert (interval["start"], interval["meters"]) == ("2026-04-22T09:00:00+07:00", 24)
    stale, fresh = world.queries.rounds("energy-price", 5)
    assert (stale["status"], stale["value"], stale["published"]) == ("stale", None, False)
    assert (fresh["status"], fresh["value"], fresh["published"]) == ("fresh", 3_900_000, True)


# -- certificates ----------------------------------------------------------------------------------


def test_certificates_are_held_moved_and_retired(world: World) -> None:
    name = b"\x01" * 32
    world.on(
        PUBLIC,
        rec.CertificateIssued(name, 0, b"\x02" * 32, FIRST, 900, key("alice"), 0, "ES100", "TC120"),
    )
    world.on(PUBLIC, rec.CertificateTransferred(name, key("alice"), key("bob"), 300))
    world.on(PUBLIC, rec.CertificateRetired(0, name, key("bob"), 300, "Siam Brewery", "beer"))
    assert world.status()["certificates"] == {"minted_wh": 900, "retired_wh": 300}
    (held,) = world.queries.certificates(key("alice"), 5)
    assert (held["held_wh"], held["retired_wh"]) == (600, 300)
    assert world.queries.certificates(key("bob"), 5) == []
    found = world.queries.certificate(name)
    assert found is not None
    assert found["holders"] == [{"account": address(key("alice")), "energy_wh": 600}]
    assert found["retirements"][0]["beneficiary"] == "Siam Brewery"
    assert world.queries.certificate(b"\x09" * 32) is None


# -- packets ---------------------------------------------------------------------------------------


def sent(sequence: int) -> calls.PacketSent:
    packet = Packet(CONSORTIUM, PUBLIC, sequence, "transfer", NETWORK_MS, b"")
    return calls.PacketSent(bytes((sequence,)) * 32, packet)


def received(sequence: int, ack: Delivered | Refused) -> calls.PacketReceived:
    return calls.PacketReceived(bytes((sequence,)) * 32, PUBLIC, sequence, "transfer", ack)


@pytest.mark.parametrize("arrival_first", [False, True])
def test_a_packets_two_ends_meet_in_either_order(world: World, *, arrival_first: bool) -> None:
    parts = [
        (PUBLIC, (sent(1), sent(2), sent(3))),
        (CONSORTIUM, (received(1, Delivered(b"")), received(2, Refused("limit", "too much")))),
    ]
    for chain, events in reversed(parts) if arrival_first else parts:
        world.on(chain, *events)
    world.on(PUBLIC, calls.PacketTimedOut(b"\x03" * 32, CONSORTIUM, 3, "transfer"))
    world.on(
        PUBLIC, calls.PacketAcknowledged(b"\x01" * 32, CONSORTIUM, 1, "transfer", Delivered(b""))
    )
    route = "public-consortium"
    assert world.status()["packets"][route] == {"sent": 3, "delivered": 1, "timed_out": 1}
    found = {each["sequence"]: each for each in world.queries.packets(route, None, 9)}
    assert {n: each["status"] for n, each in found.items()} == {
        1: "delivered",
        2: "refused",
        3: "timed_out",
    }
    assert found[1]["sent_ms"] is not None
    assert found[1]["arrived_ms"] is not None
    assert found[1]["ended_ms"] is not None
    assert [each["sequence"] for each in world.queries.packets(route, "refused", 9)] == [2]


def test_an_event_of_a_later_version_is_counted_and_passed_over(world: World) -> None:
    class Novelty(Wire, frozen=True, tag="market.novelty"):
        number: int

    world.on(CONSORTIUM, Novelty(1), opened())
    assert world.queries.book(0) is not None


def test_old_rows_are_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from gridtokenx.gateway import projection

    monkeypatch.setattr(projection, "HEADERS_KEPT", 10)
    monkeypatch.setattr(projection, "TICKER_KEPT", 5)
    signal = market.PriceSignalUpdated(0, FIRST + 2, CLOCK.grid_epoch_ms, PRICE, 10, 20)
    for _ in range(128):
        world.on(CONSORTIUM, signal)
    assert len(world.queries.headers(CONSORTIUM, 500)) == 10
    assert len(world.queries.events(0, 500)) == 5
