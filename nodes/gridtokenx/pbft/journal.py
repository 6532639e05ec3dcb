"""What a replica must not forget, and how it is restored.

Law of the file: **a restarted replica is one that was slow.** Everything it promised is in table "log"
of the batch that preceded the promise; what is not there it never said. Votes for a height are
forgotten when its block is committed, for the block's own records say more; all of it when the set
hands over, in the batch that begins the next term (`terms.py`).

=================================  =============================================================
key in "log"                       value
=================================  =============================================================
``view``                           `ViewRecord`: which view, and whether it takes part in it
``view-change``                    own `ViewChange` to that view, to be sent again
``new-view``                       the `NewView` that opened that view: for laggards, and its floor
height (8 bytes) ``/accepted``     `Reproposal`: the proposal accepted in that view
height ``/prepare``                own `Prepare`
height ``/commit``                 own `Commit`
height ``/prepared``               `PreparedCertificate` of the highest view
height ``/body/`` hash             a `Block` that one of these names
=================================  =============================================================

The high-water marks are apart (`marks.py`), and committed blocks too (`ledger/records.py`).
"""

from dataclasses import dataclass
from typing import Final, TypeVar

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.machine import Reader, Write
from gridtokenx.core.types import UInt63
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.records import height_key
from gridtokenx.pbft.log import Slot, VoteLog
from gridtokenx.pbft.messages import (
    Commit,
    NewView,
    Prepare,
    PreparedCertificate,
    Reproposal,
    ViewChange,
)
from gridtokenx.pbft.turn import Turn

LOG: Final = "log"
_VIEW: Final = b"view"
_VIEW_CHANGE: Final = b"view-change"
_NEW_VIEW: Final = b"new-view"
_ACCEPTED: Final = b"/accepted"
_PREPARE: Final = b"/prepare"
_COMMIT: Final = b"/commit"
_PREPARED: Final = b"/prepared"
_BODY: Final = b"/body/"
T = TypeVar("T", bound=Wire)


class ViewRecord(Wire, frozen=True):
    """Where a replica is."""

    view: UInt63
    """Its view, or the one that it moves to."""
    active: bool
    """Whether it takes part; False while it waits for the new-view."""


@dataclass(frozen=True, slots=True)
class ViewMemory:
    """What the journal knows about views."""

    record: ViewRecord
    view_change: ViewChange | None
    new_view: NewView | None


class Journal:
    """Writes to, and restores from, table "log"."""

    def __init__(self, reader: Reader) -> None:
        self._reader: Final = reader
        self._keys: dict[int, set[bytes]] = {}

    # -- writing -----------------------------------------------------------------------------------

    def left_view(self, turn: Turn, change: ViewChange) -> None:
        """It will take no further part in views before the one that `change` names."""
        self._put(turn, _VIEW, ViewRecord(view=change.body.view, active=False))
        self._put(turn, _VIEW_CHANGE, change)
        turn.write(Write(LOG, _NEW_VIEW, None))

    def entered_view(self, turn: Turn, new_view: NewView) -> None:
        """It takes part in the view that `new_view` opens."""
        self._put(turn, _VIEW, ViewRecord(view=new_view.body.view, active=True))
        self._put(turn, _NEW_VIEW, new_view)
        turn.write(Write(LOG, _VIEW_CHANGE, None))

    def began_period(self, turn: Turn, view: int) -> None:
        """It takes part in the first view of a period, which the block in this batch opens."""
        self._put(turn, _VIEW, ViewRecord(view=view, active=True))
        for key in (_VIEW_CHANGE, _NEW_VIEW):
            turn.write(Write(LOG, key, None))

    def accepted(self, turn: Turn, slot: Slot) -> None:
        """It accepted a proposal."""
        if slot.ballot is not None:
            record = Reproposal(ballot=slot.ballot, signature=slot.proposal)
            self._put_at(turn, slot.height, _ACCEPTED, record)

    def voted(self, turn: Turn, vote: Prepare | Commit) -> None:
        """It is about to send a vote."""
        if isinstance(vote, Prepare):
            self._put_at(turn, vote.ballot.height, _PREPARE, vote)
        else:
            self._put_at(turn, vote.vote.height, _COMMIT, vote)

    def prepared(self, turn: Turn, certificate: PreparedCertificate) -> None:
        """A block is prepared: the next view-change will say so."""
        self._put_at(turn, certificate.header.height, _PREPARED, certificate)

    def body(self, turn: Turn, block: Block) -> None:
        """A vote or certificate will name this block: others may need it from here."""
        self._put_at(turn, block.height, _BODY + block.hash, block)

    def ended_view(self, turn: Turn, slot: Slot) -> None:
        """The view of an accepted proposal ended; votes, bodies and what is prepared stay."""
        self._delete(turn, slot.height, {height_key(slot.height) + _ACCEPTED})

    def clear(self, turn: Turn) -> None:
        """The set handed over: its views and votes are of no more use."""
        for key in (_VIEW, _VIEW_CHANGE, _NEW_VIEW):
            turn.write(Write(LOG, key, None))
        for height in list(self._keys):
            self._delete(turn, height, set(self._keys[height]))

    def forget(self, turn: Turn, height: int) -> None:
        """A height is committed: its votes need not be remembered."""
        for old in [h for h in self._keys if h <= height]:
            self._delete(turn, old, set(self._keys[old]))

    # -- restoring ---------------------------------------------------------------------------------

    def views(self) -> ViewMemory:
        """Which view it was in."""
        return ViewMemory(
            record=self._get(_VIEW, ViewRecord) or ViewRecord(view=0, active=True),
            view_change=self._get(_VIEW_CHANGE, ViewChange),
            new_view=self._get(_NEW_VIEW, NewView),
        )

    def restore(self, log: VoteLog, head: int) -> None:
        """Put back what it had accepted and voted above the last committed height."""
        for key, value in self._reader.scan(LOG):
            height, name = int.from_bytes(key[:8], "big"), key[8:]
            if not name.startswith(b"/") or height <= head:
                continue
            self._keys.setdefault(height, set()).add(key)
            _restore(log, log.slot(height), name, value)

    # -- records -----------------------------------------------------------------------------------

    def _get(self, key: bytes, type_: type[T]) -> T | None:
        raw = self._reader.get(LOG, key)
        return None if raw is None else decode_own(raw, type_)

    @staticmethod
    def _put(turn: Turn, key: bytes, value: Wire) -> None:
        turn.write(Write(LOG, key, encode(value)))

    def _put_at(self, turn: Turn, height: int, name: bytes, value: Wire) -> None:
        key = height_key(height) + name
        self._keys.setdefault(height, set()).add(key)
        turn.write(Write(LOG, key, encode(value)))

    def _delete(self, turn: Turn, height: int, keys: set[bytes]) -> None:
        known = self._keys.get(height, set())
        for key in sorted(keys & known):
            turn.write(Write(LOG, key, None))
        known -= keys
        if not known:
            self._keys.pop(height, None)


def _restore(log: VoteLog, slot: Slot, name: bytes, value: bytes) -> None:
    if name == _ACCEPTED:
        accepted = decode_own(value, Reproposal)
        slot.accept(accepted.ballot, accepted.signature)
    elif name == _PREPARE:
        slot.own_prepare = decode_own(value, Prepare)
        log.add_prepare(slot.own_prepare)
    elif name == _COMMIT:
        commit = decode_own(value, Commit)
        slot.settle(commit)
        log.add_commit(commit)
    elif name == _PREPARED:
        slot.prepared = decode_own(value, PreparedCertificate)
    elif name.startswith(_BODY):
        slot.bodies[name[len(_BODY) :]] = decode_own(value, Block)
