"""From a verified block's events to the index's rows; nothing else ever writes them.

Law of the file: **the rows are a function of the chains.** Blocks of one chain come in order, but the
three chains are followed independently, so what one chain says of another's packet may come first:
packets are merged, and every other table belongs to one chain.

A reading is counted when the oracle chain executed it: verified if it was accepted, rejected if not.
What the oracle nodes' intake refused before a block is in no block, and nothing could prove it.
Events do not tell whose transactions they are about, so blocks of the oracle chain come with theirs.
"""

import sqlite3
from typing import Final

import msgspec

from gridtokenx.consortium.market import messages as market
from gridtokenx.consortium.settlement import messages as settlement
from gridtokenx.core.addresses import address
from gridtokenx.core.codec import Wire, decode, decode_own, encode
from gridtokenx.core.errors import Malformed
from gridtokenx.core.units import GRID, WATT
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.gateway.facts import CONSORTIUM, ORACLE, Chain, NetworkFacts, market_name
from gridtokenx.gateway.ports import VerifiedBlock
from gridtokenx.gateway.schema import cursor_checksum
from gridtokenx.interchain import calls, council
from gridtokenx.interchain.apps import transfer
from gridtokenx.interchain.packets import Acknowledgement, Delivered, Refused
from gridtokenx.ledger.readings import SubmitReading
from gridtokenx.ledger.runtime import OK, Executed
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.oracle.chain.feeds import RoundClosed, ValuePublished
from gridtokenx.oracle.chain.meters import IntervalClosed
from gridtokenx.oracle.chain.rounds import Status
from gridtokenx.public import rec

HEADERS_KEPT: Final = 5_000
TICKER_KEPT: Final = 500
SIGNALS_KEPT: Final = 5_000
ROUNDS_KEPT: Final = 5_000
_PRUNE_EVERY: Final = 64


class BlockWriter:
    """Writes one block; inside the transaction of its caller.

    Args:
        connection: where to.
        network: how people call things.
        chain: whose block it is.
        block: what to write.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        network: NetworkFacts,
        chain: Chain,
        block: VerifiedBlock,
    ) -> None:
        self._sql: Final = connection.execute
        self._network: Final = network
        self._chain: Final = chain
        self._block: Final = block
        self._height: Final = block.header.height
        self._now_ms: Final = block.header.timestamp_ms
        self._readings: Final = (
            frozenset(filter(None, map(_reading_id, block.transactions)))
            if chain.name == ORACLE
            else frozenset()
        )

    def write(self) -> list[Executed]:
        """Write events, header and cursor; returns the receipts among the events."""
        receipts: list[Executed] = []
        for record in self._block.events:
            try:
                event = self._chain.decode_event(record)
            except Malformed:
                self._count("events.unknown")  # a later version's; proved, but not readable here
                continue
            if isinstance(event, Executed):
                receipts.append(event)
            self._take(event)
        self._move_cursor()
        if self._height % _PRUNE_EVERY == 0:
            self._prune()
        return receipts

    # -- every chain -------------------------------------------------------------------------------

    def _move_cursor(self) -> None:
        header, name = self._block.header, self._chain.name
        before = self._sql("SELECT * FROM cursors WHERE chain = ?", (name,)).fetchone()
        interval_ms = None if before is None else self._now_ms - before["timestamp_ms"]
        current = (
            self._chain.validators
            if before is None
            else decode_own(before["validators"], ValidatorSet)
        )
        leader = self._chain.leader(header, current)
        events = len(self._block.events)
        place = (name, self._height, header.hash, self._now_ms)
        self._sql(
            "INSERT INTO headers VALUES (?,?,?,?,?,?,?,?)",
            (*place, interval_ms, leader, events, encode(header)),
        )
        validators = encode(self._block.next_set or current)
        cursor = (*place, validators)
        self._sql(
            "INSERT OR REPLACE INTO cursors VALUES (?,?,?,?,?,?)",
            (*cursor, cursor_checksum(*cursor)),
        )

    def _prune(self) -> None:
        name, below = self._chain.name, self._height - HEADERS_KEPT
        self._sql("DELETE FROM headers WHERE chain = ? AND height <= ?", (name, below))
        self._sql("DELETE FROM receipts WHERE chain = ? AND height <= ?", (name, below))
        for table, kept in (("ticker", TICKER_KEPT), ("signals", SIGNALS_KEPT)):
            newest = f"(SELECT max(id) FROM {table})"  # noqa: S608 - names of this file
            self._sql(f"DELETE FROM {table} WHERE id <= {newest} - ?", (kept,))  # noqa: S608

    def _count(self, name: str, amount: int = 1) -> None:
        self._sql(
            "INSERT INTO counters VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, amount),
        )

    def _tell(self, kind: str, text: str) -> None:
        self._sql(
            "INSERT INTO ticker (chain, height, timestamp_ms, kind, text) VALUES (?,?,?,?,?)",
            (self._chain.name, self._height, self._now_ms, kind, text),
        )

    def _take(self, event: Wire) -> None:
        if isinstance(event, Executed):
            self._take_receipt(event)
        elif isinstance(event, calls.EVENTS):
            self._take_packet(event)
        elif isinstance(event, market.EVENTS):
            self._take_market(event)
        elif isinstance(event, settlement.EVENTS):
            self._take_settlement(event)
        elif isinstance(event, rec.Certificates.events):
            self._take_certificate(event)
        elif isinstance(event, transfer.TransferApp.events):
            self._take_transfer(event)
        elif isinstance(event, IntervalClosed | RoundClosed | ValuePublished):
            self._take_observation(event)

    def _take_receipt(self, event: Executed) -> None:
        results = msgspec.json.encode(
            [{"code": each.code, "message": each.message} for each in event.results]
        )
        self._sql(
            "INSERT OR REPLACE INTO receipts VALUES (?,?,?,?)",
            (event.transaction_id, self._chain.name, self._height, results.decode()),
        )
        if event.transaction_id in self._readings:
            refused = [each for each in event.results if each.code != OK.code]
            self._count("readings.rejected" if refused else "readings.verified")
            if refused:
                why = refused[0].message or refused[0].code
                self._tell("reading-refused", f"a reading was refused: {why}")
        elif self._chain.name == CONSORTIUM:
            for each in event.results:
                if each.code != OK.code:
                    self._tell("call-refused", f"a call was refused: {each.message or each.code}")

    # -- packets -----------------------------------------------------------------------------------

    def _take_packet(self, event: Wire) -> None:
        match event:
            case calls.PacketSent(packet_id=packet_id, packet=packet):
                route = self._chain.route_to(packet.source_client)
                if route is not None:
                    self._merge_packet(route, packet.sequence, packet_id, packet.port, "sent")
                    self._count(f"packets.{route}.sent")
            case calls.PacketReceived():
                self._packet_arrived(event)
            case calls.PacketAcknowledged(packet_id=packet_id, sequence=sequence, port=port):
                route = self._chain.route_to(event.client_id)
                if route is not None:
                    status = _verdict(event.acknowledgement)
                    self._merge_packet(route, sequence, packet_id, port, status, ended=True)
            case calls.PacketTimedOut(packet_id=packet_id, sequence=sequence, port=port):
                route = self._chain.route_to(event.client_id)
                if route is not None:
                    self._merge_packet(route, sequence, packet_id, port, "timed_out", ended=True)
                    self._count(f"packets.{route}.timed_out")
                    self._tell("packet-timed-out", f"{port} packet {sequence} of {route} timed out")
            case calls.ClientFrozen(client_id=client_id, height=height):
                self._tell("client-frozen", f"{client_id} contradicted itself at {height}")
            case council.ClientRecovered(client_id=client_id, height=height):
                self._tell("client-recovered", f"{client_id} goes on from block {height}")
            case council.PauseChanged(paused=paused):
                self._tell("pause-changed", f"packets {'stopped' if paused else 'go on'}")

    def _packet_arrived(self, event: calls.PacketReceived) -> None:
        route = self._chain.route_from(event.client_id)
        if route is None:
            return
        status = _verdict(event.acknowledgement)
        self._merge_packet(route, event.sequence, event.packet_id, event.port, status, arrived=True)
        self._count(f"packets.{route}.{status}")
        if isinstance(event.acknowledgement, Refused):
            why = event.acknowledgement.code
            name = f"{event.port} packet {event.sequence} of {route}"
            self._tell("packet-refused", f"{name} was refused: {why}")

    def _merge_packet(
        self,
        route: str,
        sequence: int,
        packet_id: bytes,
        port: str,
        status: str,
        *,
        arrived: bool = False,
        ended: bool = False,
    ) -> None:
        """What either chain says of a packet; `sent` never overwrites what came of it."""
        now_ms = self._now_ms
        sent_ms = now_ms if status == "sent" else None
        self._sql(
            "INSERT INTO packets VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (route, sequence) DO UPDATE"
            " SET status = CASE excluded.status WHEN 'sent' THEN status ELSE excluded.status END,"
            " sent_ms = coalesce(sent_ms, excluded.sent_ms),"
            " arrived_ms = coalesce(arrived_ms, excluded.arrived_ms),"
            " ended_ms = coalesce(ended_ms, excluded.ended_ms)",
            (
                route,
                sequence,
                packet_id,
                port,
                status,
                sent_ms,
                now_ms if arrived else None,
                now_ms if ended else None,
            ),
        )

    def _take_transfer(self, event: Wire) -> None:
        match event:
            case transfer.TransferSent():
                text = f"{_amount(event.denom, event.amount)} to the {event.client_id} chain"
                self._tell("transfer-sent", text)
            case transfer.TransferReceived():
                text = f"{_amount(event.denom, event.amount)} from the {event.client_id} chain"
                self._tell("transfer-received", text)
            case transfer.TransferRefunded():
                text = f"{_amount(event.denom, event.amount)} came back: {event.reason}"
                self._tell("transfer-refunded", text)

    # -- market ------------------------------------------------------------------------------------

    def _take_market(self, event: Wire) -> None:
        match event:
            case market.BookOpened():
                self._sql(
                    "INSERT INTO books VALUES (?,?,?,?,?,?,'open')",
                    (
                        event.zone,
                        event.interval,
                        event.gate_ms,
                        event.reference_uwatt_per_kwh,
                        event.floor_uwatt_per_kwh,
                        event.cap_uwatt_per_kwh,
                    ),
                )
            case market.OrderPlaced():
                self._order_placed(event)
            case market.OrderCancelled(order_id=order_id, reason=reason):
                status = "void" if reason == "void" else "cancelled"
                self._close_order(order_id, 0, status)
            case market.OrderClosed(order_id=order_id, filled_wh=filled_wh):
                self._close_order(order_id, filled_wh, None)
            case market.TradeMatched():
                self._trade(event)
            case market.AuctionCleared():
                self._auction_cleared(event)
            case market.AuctionVoided():
                self._auction_voided(event)
            case market.PriceSignalUpdated():
                self._signal(event)

    def _order_placed(self, event: market.OrderPlaced) -> None:
        self._sql(
            "INSERT INTO orders VALUES (?,?,?,?,?,?,?,?,?,'open',0,?,NULL)",
            (
                event.order_id,
                event.account,
                event.client_order_id,
                event.zone,
                event.interval,
                event.side.value,
                event.limit_uwatt_per_kwh,
                event.energy_wh,
                event.locked_uwatt,
                self._height,
            ),
        )
        self._count("orders.placed")

    def _close_order(self, order_id: int, filled_wh: int, status: str | None) -> None:
        self._sql(
            "UPDATE orders SET filled_wh = ?1, closed_height = ?2, status = coalesce(?3, CASE"
            " WHEN ?1 = 0 THEN 'unfilled' WHEN ?1 < energy_wh THEN 'partly_filled'"
            " ELSE 'filled' END) WHERE order_id = ?4",
            (filled_wh, self._height, status, order_id),
        )

    def _trade(self, event: market.TradeMatched) -> None:
        self._sql(
            "INSERT INTO trades (zone, interval, buy_order_id, sell_order_id, buyer, seller,"
            " energy_wh, price_uwatt_per_kwh, height) VALUES (?,?,?,?,?,?,?,?,?)",
            (
                event.zone,
                event.interval,
                event.buy_order_id,
                event.sell_order_id,
                event.buyer,
                event.seller,
                event.energy_wh,
                event.price_uwatt_per_kwh,
                self._height,
            ),
        )

    def _auction_cleared(self, event: market.AuctionCleared) -> None:
        price = event.price_uwatt_per_kwh
        status = "cleared" if price is not None else "no_trade"
        self._sql(
            "INSERT INTO auctions VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                event.zone,
                event.interval,
                status,
                price,
                event.volume_wh,
                event.demand_wh,
                event.supply_wh,
                event.orders,
                event.trades,
                event.rule.value,
                self._height,
            ),
        )
        self._close_book(event.zone, event.interval, status)
        self._count("auctions.held")
        product = self._network.product(event.zone, event.interval)
        if price is None:
            self._tell("auction", f"auction {product}: {event.orders} orders, nothing to trade")
            return
        self._count("auctions.cleared")
        self._count("auctions.energy_wh", event.volume_wh)
        self._tell(
            "auction",
            f"auction {product}: {_kwh(event.volume_wh)} in {event.trades} trades at"
            f" {price / WATT:.3f} WATT/kWh",
        )

    def _auction_voided(self, event: market.AuctionVoided) -> None:
        self._sql(
            "INSERT INTO auctions VALUES (?,?,'void',NULL,0,0,0,?,0,NULL,?)",
            (event.zone, event.interval, event.orders, self._height),
        )
        self._close_book(event.zone, event.interval, "void")
        self._count("auctions.voided")
        product = self._network.product(event.zone, event.interval)
        self._tell("auction-void", f"auction {product}: void, delivery began first")

    def _close_book(self, zone: int, interval: int, status: str) -> None:
        self._sql(
            "UPDATE books SET status = ? WHERE zone = ? AND interval = ?", (status, zone, interval)
        )

    def _signal(self, event: market.PriceSignalUpdated) -> None:
        self._sql(
            "INSERT INTO signals (zone, grid_ms, interval, price_uwatt_per_kwh, supply_wh,"
            " demand_wh, height) VALUES (?,?,?,?,?,?,?)",
            (
                event.zone,
                event.grid_ms,
                event.interval,
                event.price_uwatt_per_kwh,
                event.supply_wh,
                event.demand_wh,
                self._height,
            ),
        )
        price = event.price_uwatt_per_kwh / WATT
        self._tell("price", f"{market_name(event.zone)}: {price:.3f} WATT/kWh indicative")

    # -- settlement --------------------------------------------------------------------------------

    def _take_settlement(self, event: Wire) -> None:
        match event:
            case settlement.Statement():
                self._statement(event)
            case settlement.IntervalSettled():
                self._settled(event)
            case settlement.AccountDefaulted(account=account, shortfall_uwatt=shortfall_uwatt):
                text = f"{address(account)[:14]}... owes {shortfall_uwatt / WATT:.2f} WATT more"
                self._tell("default", text)

    def _statement(self, event: settlement.Statement) -> None:
        """The latest statement of an account; one of many lines comes in parts."""
        earlier = self._sql(
            "SELECT lines FROM statements WHERE account = ? AND interval = ? AND height = ?",
            (event.account, event.interval, self._height),
        ).fetchone()
        lines = msgspec.json.encode(
            ([] if earlier is None else msgspec.json.decode(earlier[0]))
            + [
                {
                    "interval": line.interval,
                    "zone": line.zone,
                    "item": line.item.value,
                    "energy_wh": line.energy_wh,
                    "price_uwatt_per_kwh": line.price_uwatt_per_kwh,
                    "amount_nwatt": line.amount_nwatt,
                }
                for line in event.lines
            ]
        )
        self._sql(
            "INSERT OR REPLACE INTO statements VALUES (?,?,?,?,?,?)",
            (
                event.account,
                event.interval,
                event.net_uwatt,
                event.paid_uwatt,
                lines.decode(),
                self._height,
            ),
        )

    def _settled(self, event: settlement.IntervalSettled) -> None:
        row = self._sql(
            "SELECT coalesce(sum(trades), 0) FROM auctions WHERE interval = ?", (event.interval,)
        ).fetchone()
        details = msgspec.json.encode({n: getattr(event, n) for n in _SETTLED_FIELDS}).decode()
        self._sql(
            "INSERT OR REPLACE INTO settlements VALUES (?,?,?,?,?)",
            (event.interval, event.metered, row[0], details, self._height),
        )
        self._count("settlements.intervals", int(event.metered))
        self._count("settlements.trades", row[0])
        self._tell(
            "settled",
            f"settled {self._network.interval_start(event.interval)[11:16]}: {event.accounts} accounts, "
            f"{_kwh(event.contracted_wh)} contracted, {event.debits_uwatt / WATT:.2f} WATT paid",
        )

    # -- oracle chain ------------------------------------------------------------------------------

    def _take_observation(self, event: Wire) -> None:
        match event:
            case IntervalClosed():
                self._interval_closed(event)
            case RoundClosed(feed=feed, outcome=outcome):
                value = None if outcome.status is Status.STALE else outcome.value
                self._sql(
                    "INSERT OR REPLACE INTO feeds VALUES (?,?,?,?,?,?,0)",
                    (
                        feed,
                        outcome.round,
                        outcome.status.name.lower(),
                        value,
                        outcome.observations,
                        outcome.closed_ms,
                    ),
                )
                self._sql(
                    "DELETE FROM feeds WHERE feed = ? AND round <= ?",
                    (feed, outcome.round - ROUNDS_KEPT),
                )
            case ValuePublished(feed=feed, outcome=outcome):
                self._sql(
                    "UPDATE feeds SET published = 1 WHERE feed = ? AND round = ?",
                    (feed, outcome.round),
                )
                unit = self._network.feed_units.get(feed, "")
                seen = f"seen by {outcome.observations} oracles"
                self._tell("feed", f"{feed}: {outcome.value} {unit}, {seen}")

    def _interval_closed(self, event: IntervalClosed) -> None:
        outcome = event.outcome
        self._sql(
            "INSERT INTO intervals VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                outcome.interval,
                outcome.meters,
                outcome.import_wh,
                outcome.export_wh,
                outcome.generation_wh,
                outcome.substituted,
                outcome.corrections,
                outcome.attested_wh,
                outcome.closed_ms,
                self._height,
            ),
        )
        self._tell(
            "interval",
            f"metered {self._network.interval_start(outcome.interval)[11:16]}: {outcome.meters} meters,"
            f" {outcome.substituted} estimated, {_kwh(outcome.generation_wh)} of sun",
        )

    # -- certificates ------------------------------------------------------------------------------

    def _take_certificate(self, event: Wire) -> None:
        match event:
            case rec.CertificateIssued():
                self._issued(event)
            case rec.CertificateTransferred():
                self._hold(event.certificate, event.sender, -event.energy_wh)
                self._hold(event.certificate, event.to, event.energy_wh)
                self._tell("certificate-moved", f"{_kwh(event.energy_wh)} changed hands")
            case rec.CertificateRetired():
                self._retired(event)
            case rec.AttestationDeclined(energy_wh=energy_wh, code=code):
                self._tell("certificate-declined", f"{_kwh(energy_wh)} were not certified: {code}")

    def _issued(self, event: rec.CertificateIssued) -> None:
        self._sql(
            "INSERT INTO certificates VALUES (?,?,?,?,?,?,?,?,?,0,?)",
            (
                event.certificate,
                event.number,
                event.device,
                event.interval,
                event.zone,
                event.source,
                event.technology,
                event.owner,
                event.energy_wh,
                self._height,
            ),
        )
        self._hold(event.certificate, event.owner, event.energy_wh)
        self._count("certificates.minted_wh", event.energy_wh)
        start = self._network.interval_start(event.interval)[11:16]
        self._tell("certificate", f"certified {_kwh(event.energy_wh)} of {start}")

    def _retired(self, event: rec.CertificateRetired) -> None:
        self._sql(
            "INSERT INTO retirements VALUES (?,?,?,?,?,?,?)",
            (
                event.number,
                event.certificate,
                event.account,
                event.energy_wh,
                event.beneficiary,
                event.reason,
                self._height,
            ),
        )
        self._hold(event.certificate, event.account, -event.energy_wh)
        self._sql(
            "UPDATE certificates SET retired_wh = retired_wh + ? WHERE id = ?",
            (event.energy_wh, event.certificate),
        )
        self._count("certificates.retired_wh", event.energy_wh)
        self._tell("retired", f"retired {_kwh(event.energy_wh)} for {event.beneficiary}")

    def _hold(self, certificate: bytes, account: bytes, energy_wh: int) -> None:
        self._sql(
            "INSERT INTO holdings VALUES (?,?,?) ON CONFLICT (certificate, account)"
            " DO UPDATE SET energy_wh = energy_wh + excluded.energy_wh",
            (certificate, account, energy_wh),
        )
        self._sql(
            "DELETE FROM holdings WHERE certificate = ? AND account = ? AND energy_wh = 0",
            (certificate, account),
        )


_SETTLED_FIELDS: Final = tuple(
    name
    for name in settlement.IntervalSettled.__struct_fields__
    if name not in {"interval", "metered"}
)


def _reading_id(transaction: Transaction) -> bytes | None:
    """The transaction's id if it holds a reading."""
    for call in transaction.body.calls:
        try:
            decode(call, SubmitReading)
        except Malformed:
            continue
        return transaction.id
    return None


def _verdict(acknowledgement: Acknowledgement) -> str:
    return "delivered" if isinstance(acknowledgement, Delivered) else "refused"


def _kwh(energy_wh: int) -> str:
    return f"{energy_wh / 1000:.2f} kWh"


def _amount(denom: str, amount: int) -> str:
    unit = denom.rpartition("/")[2]
    scale = {"GRID": GRID, "WATT": WATT}.get(unit, 1)
    return f"{amount / scale:g} {unit}"
