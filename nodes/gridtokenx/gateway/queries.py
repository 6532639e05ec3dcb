"""Questions to the index, answered as JSON values with the unit in every name.

Each question costs a bounded amount: limits are checked by the caller, and every statement runs along
an index of the table.
"""

import sqlite3
import statistics
from typing import Any, Final

import msgspec

from gridtokenx.core.addresses import address
from gridtokenx.core.codec import decode_own
from gridtokenx.gateway.facts import ROUTES, NetworkFacts, market_name
from gridtokenx.gateway.index import Index, is_damage
from gridtokenx.gateway.ports import Unavailable
from gridtokenx.host.chains import CHAINS
from gridtokenx.ledger.blocks import Header

Json = dict[str, Any]
"""A JSON object."""

PACE_BLOCKS: Final = 100
"""Over how many blocks a chain's pace is measured."""
DEPTH_LEVELS: Final = 200
PARTS: Final = 100
"""Holders and claims shown with a certificate."""
_DEPTH: Final = {
    "buy": (
        "SELECT limit_uwatt_per_kwh, sum(energy_wh) AS energy_wh, count(*) AS orders FROM orders"
        " WHERE zone = ? AND interval = ? AND status = 'open' AND side = 'buy'"
        " GROUP BY limit_uwatt_per_kwh ORDER BY limit_uwatt_per_kwh DESC LIMIT ?"
    ),
    "sell": (
        "SELECT limit_uwatt_per_kwh, sum(energy_wh) AS energy_wh, count(*) AS orders FROM orders"
        " WHERE zone = ? AND interval = ? AND status = 'open' AND side = 'sell'"
        " GROUP BY limit_uwatt_per_kwh ORDER BY limit_uwatt_per_kwh LIMIT ?"
    ),
}


class Queries:
    """Reads an index.

    Args:
        index: what was verified.
        network: how people call things.
    """

    def __init__(self, index: Index, network: NetworkFacts) -> None:
        self._index: Final = index
        self._network: Final = network

    # -- chains ------------------------------------------------------------------------------------

    def status(self, network_ms: int) -> Json:
        """The state of the network on one page."""
        count = self._counters()
        clock = self._network.clock
        return {
            "network": self._network.name,
            "network_ms": network_ms,
            "grid_time": self._network.local_time(clock.grid_ms(network_ms)),
            "chains": {name: self.chain(name, network_ms) for name in CHAINS},
            "readings": {
                "verified": count.get("readings.verified", 0),
                "rejected": count.get("readings.rejected", 0),
            },
            "market": {
                "price_uwatt_per_kwh": self._newest_price(),
                "auctions_held": count.get("auctions.held", 0),
                "auctions_cleared": count.get("auctions.cleared", 0),
                "last_auction": self._last_auction(),
            },
            "settlements": {
                "intervals": count.get("settlements.intervals", 0),
                "trades": count.get("settlements.trades", 0),
            },
            "certificates": {
                "minted_wh": count.get("certificates.minted_wh", 0),
                "retired_wh": count.get("certificates.retired_wh", 0),
            },
            "packets": {
                route: {
                    what: count.get(f"packets.{route}.{what}", 0)
                    for what in ("sent", "delivered", "timed_out")
                }
                for route in ROUTES
            },
        }

    def chain(self, chain: str, network_ms: int) -> Json:
        """One chain's entry in `status`. All that is shown is final, so the two heights are one."""
        rows = self._all(
            "SELECT height, timestamp_ms, interval_ms, leader FROM headers WHERE chain = ?"
            " ORDER BY height DESC LIMIT ?",
            chain,
            PACE_BLOCKS,
        )
        paces = [row["interval_ms"] for row in rows if row["interval_ms"] is not None]
        newest = rows[0] if rows else None
        return {
            "height": newest["height"] if newest else 0,
            "finalized": newest["height"] if newest else 0,
            "leader": newest["leader"] if newest else None,
            "interval_p50_ms": int(statistics.median(paces)) if paces else None,
            "lag_ms": max(0, network_ms - newest["timestamp_ms"]) if newest else None,
        }

    def headers(self, chain: str, limit: int) -> list[Json]:
        """The newest final headers, newest first."""
        rows = self._all(
            "SELECT * FROM headers WHERE chain = ? ORDER BY height DESC LIMIT ?", chain, limit
        )
        return [_header(row) for row in rows]

    def events(self, after: int, limit: int) -> list[Json]:
        """What happened after event number `after`, newest first."""
        rows = self._all("SELECT * FROM ticker WHERE id > ? ORDER BY id DESC LIMIT ?", after, limit)
        return [dict(row) for row in rows]

    def receipt(self, transaction_id: bytes) -> Json | None:
        """What became of a transaction, if it is in one of the newest blocks."""
        row = self._one("SELECT * FROM receipts WHERE transaction_id = ?", transaction_id)
        if row is None:
            return None
        return {
            "transaction_id": transaction_id.hex(),
            "chain": row["chain"],
            "final": True,
            "height": row["height"],
            "results": msgspec.json.decode(row["results"]),
        }

    # -- market ------------------------------------------------------------------------------------

    def markets(self) -> list[Json]:
        """All markets with their next gate and last price."""
        return [
            {
                "market": market_name(zone),
                "zone": zone,
                "price_uwatt_per_kwh": self._zone_price(zone),
                "next_gate": self._next_gate(zone),
                "last_auction": next(iter(self.auctions(zone, 1)), None),
            }
            for zone in self._network.zones
        ]

    def signals(self, zone: int, limit: int) -> list[Json]:
        """Indicative prices, newest first."""
        rows = self._all(
            "SELECT * FROM signals WHERE zone = ? ORDER BY id DESC LIMIT ?", zone, limit
        )
        return [
            {
                "price_uwatt_per_kwh": row["price_uwatt_per_kwh"],
                "interval": row["interval"],
                "grid_time": self._network.local_time(row["grid_ms"]),
                "supply_wh": row["supply_wh"],
                "demand_wh": row["demand_wh"],
                "height": row["height"],
            }
            for row in rows
        ]

    def auctions(self, zone: int, limit: int) -> list[Json]:
        """Auctions, newest delivery interval first."""
        rows = self._all(
            "SELECT * FROM auctions WHERE zone = ? ORDER BY interval DESC LIMIT ?", zone, limit
        )
        return [
            {
                "product": self._network.product(zone, row["interval"]),
                "interval": row["interval"],
                "delivery": self._network.interval_start(row["interval"]),
                "status": row["status"],
                "price_uwatt_per_kwh": row["price_uwatt_per_kwh"],
                "energy_wh": row["volume_wh"],
                "demand_wh": row["demand_wh"],
                "supply_wh": row["supply_wh"],
                "orders": row["orders"],
                "trades": row["trades"],
                "rule": row["rule"],
                "height": row["height"],
            }
            for row in rows
        ]

    def book(self, zone: int) -> Json | None:
        """Depth of the next product to be cleared, best limits first; None while none is open."""
        gate = self._next_gate(zone)
        if gate is None:
            return None
        depth = {
            side: [dict(row) for row in self._all(query, zone, gate["interval"], DEPTH_LEVELS)]
            for side, query in _DEPTH.items()
        }
        return {"market": market_name(zone), **gate, **depth}

    def orders(
        self, account: bytes | None, zone: int | None, status: str | None, limit: int
    ) -> list[Json]:
        """Orders, newest first, by any of the three."""
        asked = {"account": account, "zone": zone, "status": status}
        given = {name: value for name, value in asked.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given) or "1"
        rows = self._all(
            f"SELECT * FROM orders WHERE {where} ORDER BY order_id DESC LIMIT ?",  # noqa: S608
            *given.values(),
            limit,
        )
        return [self._order(row) for row in rows]

    def statement(self, account: bytes) -> Json | None:
        """An account's latest statement."""
        row = self._one("SELECT * FROM statements WHERE account = ?", account)
        if row is None:
            return None
        return {
            "interval": row["interval"],
            "delivery": self._network.interval_start(row["interval"]),
            "net_uwatt": row["net_uwatt"],
            "paid_uwatt": row["paid_uwatt"],
            "lines": msgspec.json.decode(row["lines"]),
            "height": row["height"],
        }

    def settlements(self, limit: int) -> list[Json]:
        """Settled delivery intervals, newest first."""
        rows = self._all("SELECT * FROM settlements ORDER BY interval DESC LIMIT ?", limit)
        return [
            {
                "interval": row["interval"],
                "delivery": self._network.interval_start(row["interval"]),
                "metered": bool(row["metered"]),
                "trades": row["trades"],
                **msgspec.json.decode(row["details"]),
                "height": row["height"],
            }
            for row in rows
        ]

    def _order(self, row: sqlite3.Row) -> Json:
        return {
            "order_id": row["order_id"],
            "account": address(row["account"]),
            "client_order_id": row["client_order_id"],
            "market": market_name(row["zone"]),
            "product": self._network.product(row["zone"], row["interval"]),
            "interval": row["interval"],
            "side": row["side"],
            "limit_uwatt_per_kwh": row["limit_uwatt_per_kwh"],
            "energy_wh": row["energy_wh"],
            "filled_wh": row["filled_wh"],
            "locked_uwatt": row["locked_uwatt"],
            "status": row["status"],
            "placed_height": row["placed_height"],
            "closed_height": row["closed_height"],
        }

    def _next_gate(self, zone: int) -> Json | None:
        row = self._one(
            "SELECT * FROM books WHERE status = 'open' AND zone = ? ORDER BY interval LIMIT 1", zone
        )
        if row is None:
            return None
        return {
            "product": self._network.product(zone, row["interval"]),
            "interval": row["interval"],
            "delivery": self._network.interval_start(row["interval"]),
            "gate_ms": row["gate_ms"],
            "reference_uwatt_per_kwh": row["reference_uwatt_per_kwh"],
            "floor_uwatt_per_kwh": row["floor_uwatt_per_kwh"],
            "cap_uwatt_per_kwh": row["cap_uwatt_per_kwh"],
        }

    def _zone_price(self, zone: int) -> int | None:
        row = self._one(
            "SELECT price_uwatt_per_kwh FROM signals WHERE zone = ? ORDER BY id DESC LIMIT 1", zone
        )
        return None if row is None else int(row[0])

    def _newest_price(self) -> int | None:
        row = self._one("SELECT price_uwatt_per_kwh FROM signals ORDER BY id DESC LIMIT 1")
        return None if row is None else int(row[0])

    def _last_auction(self) -> Json | None:
        """The newest auction that found a price, over all zones."""
        found = [
            row
            for zone in self._network.zones[:PARTS]
            if (
                row := self._one(
                    "SELECT * FROM auctions WHERE zone = ? AND status = 'cleared'"
                    " ORDER BY interval DESC LIMIT 1",
                    zone,
                )
            )
        ]
        if not found:
            return None
        row = max(found, key=lambda each: (each["height"], each["zone"]))
        return {
            "product": self._network.product(row["zone"], row["interval"]),
            "price_uwatt_per_kwh": row["price_uwatt_per_kwh"],
            "energy_wh": row["volume_wh"],
            "trades": row["trades"],
        }

    # -- oracle chain ------------------------------------------------------------------------------

    def intervals(self, limit: int) -> list[Json]:
        """Closed intervals of the oracle chain, newest first."""
        rows = self._all("SELECT * FROM intervals ORDER BY interval DESC LIMIT ?", limit)
        return [
            {**dict(row), "start": self._network.interval_start(row["interval"])} for row in rows
        ]

    def feeds(self) -> list[str]:
        """The feeds that had a round."""
        return [row[0] for row in self._all("SELECT DISTINCT feed FROM feeds LIMIT ?", PARTS)]

    def rounds(self, feed: str, limit: int) -> list[Json]:
        """Rounds of a feed, newest first."""
        rows = self._all(
            "SELECT * FROM feeds WHERE feed = ? ORDER BY round DESC LIMIT ?", feed, limit
        )
        return [{**dict(row), "published": bool(row["published"])} for row in rows]

    # -- certificates ------------------------------------------------------------------------------

    def certificates(self, holder: bytes | None, limit: int) -> list[Json]:
        """Certificates, newest first; of one holder, with what it holds of each."""
        if holder is None:
            rows = self._all("SELECT * FROM certificates ORDER BY number DESC LIMIT ?", limit)
            return [self._certificate(row) for row in rows]
        rows = self._all(
            "SELECT certificates.*, holdings.energy_wh AS held_wh FROM holdings"
            " JOIN certificates ON certificates.id = holdings.certificate"
            " WHERE holdings.account = ? ORDER BY number DESC LIMIT ?",
            holder,
            limit,
        )
        return [{**self._certificate(row), "held_wh": row["held_wh"]} for row in rows]

    def certificate(self, certificate_id: bytes) -> Json | None:
        """One certificate with its holders and claims."""
        row = self._one("SELECT * FROM certificates WHERE id = ?", certificate_id)
        if row is None:
            return None
        holders = self._all(
            "SELECT account, energy_wh FROM holdings WHERE certificate = ? LIMIT ?",
            certificate_id,
            PARTS,
        )
        claims = self._all(
            "SELECT * FROM retirements WHERE certificate = ? ORDER BY number DESC LIMIT ?",
            certificate_id,
            PARTS,
        )
        return {
            **self._certificate(row),
            "holders": [
                {"account": address(each["account"]), "energy_wh": each["energy_wh"]}
                for each in holders
            ],
            "retirements": [
                {
                    "number": each["number"],
                    "account": address(each["account"]),
                    "energy_wh": each["energy_wh"],
                    "beneficiary": each["beneficiary"],
                    "reason": each["reason"],
                    "height": each["height"],
                }
                for each in claims
            ],
        }

    def _certificate(self, row: sqlite3.Row) -> Json:
        return {
            "id": row["id"].hex(),
            "number": row["number"],
            "device": row["device"].hex(),
            "interval": row["interval"],
            "start": self._network.interval_start(row["interval"]),
            "market": market_name(row["zone"]),
            "source": row["source"],
            "technology": row["technology"],
            "issued_to": address(row["owner"]),
            "energy_wh": row["energy_wh"],
            "retired_wh": row["retired_wh"],
            "height": row["height"],
        }

    # -- packets -----------------------------------------------------------------------------------

    def packets(self, route: str, status: str | None, limit: int) -> list[Json]:
        """Packets of a route, newest first."""
        given = [route] if status is None else [route, status]
        where = "route = ?" if status is None else "route = ? AND status = ?"
        rows = self._all(
            f"SELECT * FROM packets WHERE {where} ORDER BY sequence DESC LIMIT ?",  # noqa: S608
            *given,
            limit,
        )
        return [{**dict(row), "packet_id": row["packet_id"].hex()} for row in rows]

    # -- parts -------------------------------------------------------------------------------------

    def _counters(self) -> dict[str, int]:
        return {row["name"]: row["value"] for row in self._all("SELECT * FROM counters LIMIT 1000")}

    def _all(self, query: str, *values: object) -> list[sqlite3.Row]:
        try:
            return self._index.connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                self._index.rebuild(str(error))
            raise Unavailable("index", f"the index is being made anew: {error}") from None

    def _one(self, query: str, *values: object) -> sqlite3.Row | None:
        rows = self._all(query, *values)
        return rows[0] if rows else None


def _header(row: sqlite3.Row) -> Json:
    header = decode_own(row["header"], Header)
    return {
        "height": header.height,
        "hash": row["block_hash"].hex(),
        "parent": header.parent.hex(),
        "timestamp_ms": header.timestamp_ms,
        "interval_ms": row["interval_ms"],
        "round": header.round,
        "leader": row["leader"],
        "events": row["events"],
        "state_root": header.state_root.hex(),
        "transaction_root": header.transaction_root.hex(),
        "event_root": header.event_root.hex(),
        "set_id": header.set_id,
        "header": row["header"].hex(),
    }
