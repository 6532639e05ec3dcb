"""A gateway's index: whether the file is whole, and its chains of headers are unbroken."""

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.gateway.schema import SCHEMA_VERSION, cursor_checksum
from gridtokenx.lab.verify.findings import Finding, bounded, read_as
from gridtokenx.ledger.blocks import Header

ANEW: Final = "delete the file: the gateway makes its index anew from the chains"


def judge_index(path: Path, chains: Mapping[str, bytes]) -> tuple[list[Finding], int]:
    """Judge an index.

    Args:
        path: the database file.
        chains: chain ids by name, from the genesis files.

    Returns:
        What is wrong, and how many headers were looked at.
    """
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            return _judge(connection, path.name, chains)
        finally:
            connection.close()
    except sqlite3.Error as error:
        return [Finding(path.name, f"cannot be read: {error}", ANEW)], 0


def _judge(
    connection: sqlite3.Connection, name: str, chains: Mapping[str, bytes]
) -> tuple[list[Finding], int]:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        what = f"has schema {version}, this program has {SCHEMA_VERSION}"
        return [Finding(name, what, ANEW)], 0
    damage = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
    if damage != ["ok"]:
        return [Finding(name, line.replace("\n", " "), ANEW) for line in damage], 0
    known = {row[0]: row[1] for row in connection.execute("SELECT chain, chain_id FROM network")}
    if known != dict(chains):
        return [Finding(name, "is of another network than the genesis files", ANEW)], 0
    found: list[Finding] = []
    for chain in chains:
        found += bounded(_check_chain(connection, chain, chains[chain]))
    count = connection.execute("SELECT COUNT(*) FROM headers").fetchone()[0]
    return found, int(count)


def _check_chain(connection: sqlite3.Connection, chain: str, chain_id: bytes) -> Iterator[Finding]:
    """Headers hash to what is said of them, follow one another, and end at the cursor."""
    last: Header | None = None
    query = "SELECT height, block_hash, header FROM headers WHERE chain = ? ORDER BY height"
    for row in connection.execute(query, (chain,)):
        where, header = f"{chain} header {row['height']}", read_as(row["header"], Header)
        if header is None or (header.height, header.hash) != (row["height"], row["block_hash"]):
            yield Finding(where, "is not the header that the row names", ANEW)
            return
        if header.chain_id != chain_id:
            yield Finding(where, "is of another chain", ANEW)
        if last is not None and (last.height + 1, last.hash) != (header.height, header.parent):
            yield Finding(where, f"does not follow the row before it, {last.height}", ANEW)
            return
        last = header
    yield from _check_cursor(connection, chain, last)


def _check_cursor(
    connection: sqlite3.Connection, chain: str, last: Header | None
) -> Iterator[Finding]:
    row = connection.execute("SELECT * FROM cursors WHERE chain = ?", (chain,)).fetchone()
    where = f"cursor of the {chain} chain"
    if row is None:
        if last is not None:
            yield Finding(where, f"is missing, but there are headers up to {last.height}", ANEW)
        return
    cursor = tuple(row)
    if cursor[-1] != cursor_checksum(*cursor[:-1]):
        yield Finding(where, "fails its checksum", ANEW)
    elif last is None or (row["height"], row["block_hash"]) != (last.height, last.hash):
        newest = "there is none" if last is None else f"the last header is {last.height}"
        yield Finding(where, f"is at {row['height']}, but {newest}", ANEW)
    elif read_as(row["validators"], ValidatorSet) is None:
        yield Finding(where, "names no validator set", ANEW)
