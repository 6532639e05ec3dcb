"""The index's tables, and when a file that holds them can be used.

Everything in the index follows from the chains, so nothing in it is precious: a file that is damaged,
made by another version or for another network is put away and made anew.
"""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gridtokenx.core.keys import sha256

SCHEMA_VERSION: Final = 1

TABLES: Final = """
CREATE TABLE network (chain TEXT PRIMARY KEY, chain_id BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE cursors (
  chain TEXT PRIMARY KEY, height INTEGER NOT NULL, block_hash BLOB NOT NULL,
  timestamp_ms INTEGER NOT NULL, validators BLOB NOT NULL, checksum BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE headers (
  chain TEXT NOT NULL, height INTEGER NOT NULL, block_hash BLOB NOT NULL,
  timestamp_ms INTEGER NOT NULL, interval_ms INTEGER, leader TEXT, events INTEGER NOT NULL,
  header BLOB NOT NULL, PRIMARY KEY (chain, height)
) WITHOUT ROWID;
CREATE TABLE receipts (
  transaction_id BLOB PRIMARY KEY, chain TEXT NOT NULL, height INTEGER NOT NULL,
  results TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX receipts_by_height ON receipts (chain, height);
CREATE TABLE ticker (
  id INTEGER PRIMARY KEY AUTOINCREMENT, chain TEXT NOT NULL, height INTEGER NOT NULL,
  timestamp_ms INTEGER NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL
);

CREATE TABLE books (
  zone INTEGER NOT NULL, interval INTEGER NOT NULL, gate_ms INTEGER NOT NULL,
  reference_uwatt_per_kwh INTEGER NOT NULL, floor_uwatt_per_kwh INTEGER NOT NULL,
  cap_uwatt_per_kwh INTEGER NOT NULL, status TEXT NOT NULL, PRIMARY KEY (zone, interval)
) WITHOUT ROWID;
CREATE INDEX books_by_status ON books (status, zone, interval);
CREATE TABLE orders (
  order_id INTEGER PRIMARY KEY, account BLOB NOT NULL, client_order_id INTEGER NOT NULL,
  zone INTEGER NOT NULL, interval INTEGER NOT NULL, side TEXT NOT NULL,
  limit_uwatt_per_kwh INTEGER NOT NULL, energy_wh INTEGER NOT NULL,
  locked_uwatt INTEGER NOT NULL, status TEXT NOT NULL, filled_wh INTEGER NOT NULL,
  placed_height INTEGER NOT NULL, closed_height INTEGER
);
CREATE INDEX orders_by_account ON orders (account, order_id);
CREATE INDEX orders_by_product ON orders (zone, interval, status);
CREATE INDEX orders_by_status ON orders (status, order_id);
CREATE TABLE trades (
  id INTEGER PRIMARY KEY AUTOINCREMENT, zone INTEGER NOT NULL, interval INTEGER NOT NULL,
  buy_order_id INTEGER NOT NULL, sell_order_id INTEGER NOT NULL, buyer BLOB NOT NULL,
  seller BLOB NOT NULL, energy_wh INTEGER NOT NULL, price_uwatt_per_kwh INTEGER NOT NULL,
  height INTEGER NOT NULL
);
CREATE INDEX trades_by_product ON trades (zone, interval, id);
CREATE TABLE auctions (
  zone INTEGER NOT NULL, interval INTEGER NOT NULL, status TEXT NOT NULL,
  price_uwatt_per_kwh INTEGER, volume_wh INTEGER NOT NULL, demand_wh INTEGER NOT NULL,
  supply_wh INTEGER NOT NULL, orders INTEGER NOT NULL, trades INTEGER NOT NULL,
  rule TEXT, height INTEGER NOT NULL, PRIMARY KEY (zone, interval)
) WITHOUT ROWID;
CREATE TABLE signals (
  id INTEGER PRIMARY KEY AUTOINCREMENT, zone INTEGER NOT NULL, grid_ms INTEGER NOT NULL,
  interval INTEGER NOT NULL, price_uwatt_per_kwh INTEGER NOT NULL, supply_wh INTEGER NOT NULL,
  demand_wh INTEGER NOT NULL, height INTEGER NOT NULL
);
CREATE INDEX signals_by_zone ON signals (zone, id);
CREATE TABLE settlements (
  interval INTEGER PRIMARY KEY, metered INTEGER NOT NULL, trades INTEGER NOT NULL,
  details TEXT NOT NULL, height INTEGER NOT NULL
);
CREATE TABLE statements (
  account BLOB PRIMARY KEY, interval INTEGER NOT NULL, net_uwatt INTEGER NOT NULL,
  paid_uwatt INTEGER NOT NULL, lines TEXT NOT NULL, height INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE certificates (
  id BLOB PRIMARY KEY, number INTEGER NOT NULL, device BLOB NOT NULL, interval INTEGER NOT NULL,
  zone INTEGER NOT NULL, source TEXT NOT NULL, technology TEXT NOT NULL, owner BLOB NOT NULL,
  energy_wh INTEGER NOT NULL, retired_wh INTEGER NOT NULL, height INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX certificates_by_number ON certificates (number);
CREATE TABLE holdings (
  certificate BLOB NOT NULL, account BLOB NOT NULL, energy_wh INTEGER NOT NULL,
  PRIMARY KEY (certificate, account)
) WITHOUT ROWID;
CREATE INDEX holdings_by_account ON holdings (account);
CREATE TABLE retirements (
  number INTEGER PRIMARY KEY, certificate BLOB NOT NULL, account BLOB NOT NULL,
  energy_wh INTEGER NOT NULL, beneficiary TEXT NOT NULL, reason TEXT NOT NULL,
  height INTEGER NOT NULL
);
CREATE INDEX retirements_by_certificate ON retirements (certificate, number);

CREATE TABLE packets (
  route TEXT NOT NULL, sequence INTEGER NOT NULL, packet_id BLOB NOT NULL, port TEXT NOT NULL,
  status TEXT NOT NULL, sent_ms INTEGER, arrived_ms INTEGER, ended_ms INTEGER,
  PRIMARY KEY (route, sequence)
) WITHOUT ROWID;
CREATE INDEX packets_by_status ON packets (route, status, sequence);
CREATE TABLE intervals (
  interval INTEGER PRIMARY KEY, meters INTEGER NOT NULL, import_wh INTEGER NOT NULL,
  export_wh INTEGER NOT NULL, generation_wh INTEGER NOT NULL, substituted INTEGER NOT NULL,
  corrections INTEGER NOT NULL, attested_wh INTEGER NOT NULL, closed_ms INTEGER NOT NULL,
  height INTEGER NOT NULL
);
CREATE TABLE feeds (
  feed TEXT NOT NULL, round INTEGER NOT NULL, status TEXT NOT NULL, value INTEGER,
  observations INTEGER NOT NULL, closed_ms INTEGER NOT NULL, published INTEGER NOT NULL,
  PRIMARY KEY (feed, round)
) WITHOUT ROWID;
"""


class Unusable(Exception):
    """An index file that has to be made anew; says why."""


def open_database(path: Path, chains: Mapping[str, bytes]) -> tuple[sqlite3.Connection, str]:
    """The index of these chains, made anew if what is on disk can not be used.

    Args:
        path: the database file.
        chains: chain ids by name.

    Returns:
        The connection, and why an old index was put away; an empty text if it was not.
    """
    reason = ""
    if path.exists():
        try:
            return _open_existing(path, chains), ""
        except (Unusable, sqlite3.DatabaseError) as error:
            reason = str(error)
            remove_database(path)
    return _create(path, chains), reason


def remove_database(path: Path) -> None:
    """Delete an index and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _open_existing(path: Path, chains: Mapping[str, bytes]) -> sqlite3.Connection:
    connection = _connect(path)
    try:
        _check(connection, chains)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, chains: Mapping[str, bytes]) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise Unusable(f"it has schema {version}, this version has {SCHEMA_VERSION}")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise Unusable(f"it is damaged: {verdict}")
    known = {row[0]: row[1] for row in connection.execute("SELECT * FROM network")}
    if known != dict(chains):
        raise Unusable("it is of another network")
    for row in connection.execute("SELECT * FROM cursors"):
        cursor = tuple(row)
        if cursor[-1] != cursor_checksum(*cursor[:-1]):
            raise Unusable(f"its cursor of the {row['chain']} chain is damaged")


def cursor_checksum(*cursor: str | int | bytes) -> bytes:
    """Protects a cursor: following goes on from there without asking who wrote it."""
    return sha256(repr(cursor).encode())


def _create(path: Path, chains: Mapping[str, bytes]) -> sqlite3.Connection:
    connection = _connect(path)
    connection.executescript("BEGIN;" + TABLES)
    connection.executemany("INSERT INTO network VALUES (?, ?)", chains.items())
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    """Autocommit: transactions are written out where they happen.

    `synchronous` NORMAL: after a power cut the newest blocks may be missing, and are fetched again.
    """
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    connection.row_factory = sqlite3.Row
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "cache_size = -4096"):
        connection.execute(f"PRAGMA {pragma}")
    return connection
