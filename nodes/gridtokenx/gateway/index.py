"""The index: what the chains said, in SQLite, so that questions are answered without asking nodes.

Law of the file: **one block, one transaction.** Rows and cursor change together, so after a kill at any
instant following goes on at the block after the cursor, and no block is taken twice. A block that does
not link to the cursor's is refused: the index never mixes two histories.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gridtokenx.core.codec import decode_own
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.gateway.facts import NetworkFacts
from gridtokenx.gateway.ports import Cursor, ForeignBlock, VerifiedBlock
from gridtokenx.gateway.projection import BlockWriter
from gridtokenx.gateway.schema import open_database, remove_database
from gridtokenx.ledger.runtime import Executed

Listener = Callable[[str, VerifiedBlock, list[Executed]], None]
"""Told (chain, block, receipts) after a block was written."""


class Index:
    """The index of one network; used by one thread.

    Args:
        path: the database file; its directory exists.
        network: the chains.
    """

    def __init__(self, path: Path, network: NetworkFacts) -> None:
        self._path: Final = path
        self._network: Final = network
        self._chains: Final = {name: chain.chain_id for name, chain in network.chains.items()}
        self._listeners: list[Listener] = []
        self.rebuilds = 0
        """How often an index was put away, by this process."""
        self.connection, self.rebuilt_because = open_database(path, self._chains)
        self._note_rebuild(self.rebuilt_because)

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def listen(self, listener: Listener) -> None:
        """Hear of every block that is written."""
        self._listeners.append(listener)

    def cursor(self, chain: str) -> Cursor | None:
        """The last block taken of a chain; None before the first."""
        row = self.connection.execute("SELECT * FROM cursors WHERE chain = ?", (chain,)).fetchone()
        if row is None:
            return None
        validators = decode_own(row["validators"], ValidatorSet)
        return Cursor(row["height"], row["block_hash"], validators)

    def apply(self, chain: str, block: VerifiedBlock) -> None:
        """Take the next block of a chain.

        Raises:
            ForeignBlock: it is not the child of the last one.
            sqlite3.DatabaseError: the file is damaged; see `rebuild`.
        """
        facts = self._network.chains[chain]
        self._check_link(chain, block)
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            receipts = BlockWriter(self.connection, self._network, facts, block).write()
            execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                execute("ROLLBACK")
            raise
        for listener in self._listeners:
            listener(chain, block, receipts)

    def rebuild(self, reason: str) -> None:
        """Throw everything away; the chains hold it all."""
        self.connection.close()
        remove_database(self._path)
        self.connection, _ = open_database(self._path, self._chains)
        self._note_rebuild(reason)

    def _note_rebuild(self, reason: str) -> None:
        if reason:
            self.rebuilds += 1
            self.rebuilt_because = reason

    def _check_link(self, chain: str, block: VerifiedBlock) -> None:
        cursor, header = self.cursor(chain), block.header
        if cursor is None:
            linked = header.height == 1
        else:
            linked = (header.height, header.parent) == (cursor.height + 1, cursor.block_hash)
        if not linked or header.chain_id != self._chains[chain]:
            raise ForeignBlock(
                "foreign-block",
                f"block {header.height} of {chain} is no child of the last one indexed",
            )


def is_damage(error: BaseException) -> bool:
    """Whether only making the index anew helps."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.OperationalError
    )
