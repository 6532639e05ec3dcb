"""What a replica is made of, and the few things that all its parts do.

Law of the file: **no rule of the protocol is here.** The rules are in `catch_up.py`, `view_changing.py`
and `replica.py`, each a layer on the one before; this is what they share.
"""

from collections import Counter
from typing import Final

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Domain, Signer
from gridtokenx.core.machine import (
    CancelTimer,
    Instant,
    Misbehaviour,
    NodeId,
    Reader,
    SetTimer,
)
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.pbft.journal import Journal
from gridtokenx.pbft.log import Slot, VoteLog
from gridtokenx.pbft.marks import MarkedSigner, SigningRefused
from gridtokenx.pbft.messages import (
    MAX_WINDOW,
    Ballot,
    Equivocation,
    PrePrepare,
    Status,
)
from gridtokenx.pbft.requests import Application, Requests
from gridtokenx.pbft.rotation import Periods
from gridtokenx.pbft.snapshot import HOLD_TIMES, Checkpoints, Offers, Staging, Transfer
from gridtokenx.pbft.sync import Sync
from gridtokenx.pbft.terms import Term, ValidatorsOf, checked_term, load_terms
from gridtokenx.pbft.timing import Timing
from gridtokenx.pbft.turn import Turn
from gridtokenx.pbft.verification import Verification
from gridtokenx.pbft.views import Views

BLOCK: Final = "block"
SILENCE: Final = "silence"
REQUEST: Final = "request"
NEW_VIEW: Final = "new-view"
RETRANSMIT: Final = "retransmit"
GOSSIP: Final = "gossip"
FETCH: Final = "fetch"
"""The names of the timers."""

EARLY_HEIGHTS: Final = 2
"""How far above the window votes are kept: others commit a moment before this replica does."""
OMISSION: Final = "omission"
"""The reason for suspicion that a committed block does not end."""
CHECK_MS: Final = 500
"""How often submissions are looked at while the primary has proposed something that is not committed."""
_HELPED_PEERS: Final = 1_024
SERVED_BYTES: Final = 4 * 1024 * 1024
"""Blocks that a peer may have in half a retransmission period; the last answer may be larger."""
_QUESTION_BYTES: Final = 16 * 1024
"""What a question costs at least, in bytes of an answer."""


class ReplicaBase:
    """State, timers and signatures of one replica.

    Args:
        application: executes blocks; `ledger.runtime.Ledger`.
        validators: the chain's first set.
        validators_of: see `ValidatorsOf`.
        signer: this replica's key; nothing else may sign with it. Without a seat in the present set
            it signs nothing: the replica is an observer.
        genesis: block 0.
        reader: what earlier lives of this replica persisted.
        timing: how long to wait for what.
        pool: where submissions wait.
        rotation_blocks: after so many blocks the leadership passes on (`rotation.py`); a rule of the
            chain, equal on all replicas. 0: only view changes move it.
    """

    def __init__(
        self,
        application: Application,
        validators: ValidatorSet,
        validators_of: ValidatorsOf,
        signer: Signer,
        genesis: ExecutedBlock,
        reader: Reader,
        timing: Timing,
        pool: Pool,
        rotation_blocks: int = 0,
    ) -> None:
        if not 1 <= timing.window <= MAX_WINDOW:
            raise LocalFault(f"window {timing.window}: 1 to {MAX_WINDOW} heights may be in flight")
        self._application: Final = application
        self._chain_id: Final = application.chain_id
        self._validators_of: Final = validators_of
        self._key: Final = signer.public_key
        self._genesis: Final = genesis
        self._reader: Final = reader
        self._timing: Final = timing
        first = checked_term(Term(validators=validators, root=genesis.header))
        self._terms: Final = load_terms(reader, first)
        self._rotation_blocks: Final = rotation_blocks
        self._requests: Final = Requests(application, pool)
        self._verification: Final = Verification(
            self._chain_id, self._terms, rotation_blocks, self._requests.knows
        )
        self._signer: Final = MarkedSigner(signer, reader)
        self._journal: Final = Journal(reader)
        self._sync: Final = Sync(timing.fetch_timeout_ms)
        self._checkpoints: Final = Checkpoints(
            timing.checkpoint_blocks, HOLD_TIMES * timing.fetch_timeout_ms
        )
        self._staging: Final = Staging(reader)
        self._offers: Final = Offers(timing.fetch_timeout_ms)
        self._transfer: Transfer | None = None
        self._barred: set[NodeId] = set()
        self._renew = False
        self._torn = False
        self._head = genesis
        self._head_proof: CommitCertificate | None = None
        self._helped: dict[tuple[str, NodeId], Instant] = {}
        self._served: Counter[NodeId] = Counter()
        self._served_in = 0
        self._timers: dict[str, Instant] = {}
        self._moved_ms: Instant = 0
        self._asked = 0
        self._idle = False
        self._work_in(first)

    def _work_in(self, term: Term) -> None:
        """Begin a term: view 0, and nothing heard yet. What is of no set stays."""
        self._terms[term.set_id] = term
        self._term = term
        self._validators = term.validators
        self._me = term.validators.index_of(self._key)
        self._log = VoteLog(self._chain_id, term.validators)
        self._views = Views(term.validators, self._me)
        self._periods = Periods(term.root.height, self._rotation_blocks)
        self._leads_from_ms: Instant = 0
        self._early: dict[tuple[int, int], PrePrepare] = {}
        self._wanted: dict[tuple[int, bytes], tuple[int, ...]] = {}
        self._reported: dict[int, int] = {}
        self._omissions = 0
        self._muted_view = -1
        self._deceived_at = (-1, -1)
        self._late = False
        self._reminded_ms: Instant = 0

    # -- for hosts ---------------------------------------------------------------------------------

    @property
    def head(self) -> ExecutedBlock:
        """The last committed block."""
        return self._head

    @property
    def view(self) -> int:
        """The view, or the one that it moves to."""
        return self._views.view

    @property
    def position(self) -> tuple[int, int]:
        """The set and the view, in the order in which they grow."""
        return self._validators.set_id, self._views.view

    @property
    def active(self) -> bool:
        """Whether it takes part in `view`; False while it waits for the new-view."""
        return self._views.active

    @property
    def primary(self) -> NodeId:
        """The key of the view's primary."""
        return self._validators.members[self._views.primary]

    @property
    def validators(self) -> ValidatorSet:
        """The set that finalises the next block."""
        return self._validators

    @property
    def seated(self) -> bool:
        """Whether this replica has a seat in that set; if not, it observes."""
        return self._me is not None

    @property
    def _seat(self) -> int:
        """This replica's index; only for what members do."""
        assert self._me is not None, "observers have no index"
        return self._me

    @property
    def pending(self) -> int:
        """Submissions that wait for a block."""
        return len(self._requests.pool)

    @property
    def congested(self) -> bool:
        """Whether submissions wait half their bound for the primary: more would make it seem to omit them."""
        return self._late and self._views.active

    # -- the window --------------------------------------------------------------------------------

    def _in_flight(self) -> list[Slot]:
        """The slots of the window, ascending, as far as there are any without gap."""
        return self._log.run_above(self._head.height, self._timing.window)

    def _is_past(self, view: int) -> bool:
        return view < self._views.view

    def _is_later_period(self, view: int) -> bool:
        """Whether a view is beyond the present period: blocks are missing here, not messages."""
        return view > self._views.view and not self._periods.covers(view, self._head.height + 1)

    def _is_ahead(self, view: int) -> bool:
        """Whether a peer's view says that this replica misses more than the block on its way."""
        return view > self._views.view and not self._periods.is_next(self._views.view, view)

    # -- saying ------------------------------------------------------------------------------------

    def _status(self) -> Status:
        return Status(
            set_id=self._validators.set_id,
            view=self._views.view,
            active=self._views.active,
            height=self._head.height,
        )

    def _report(self, turn: Turn, proof: Equivocation | None) -> None:
        """Report a contradiction, once per offender and height in a row: one proof is enough."""
        if proof is None or self._reported.get(proof.offender) == self._head.height:
            return
        self._reported[proof.offender] = self._head.height
        offender = self._validators.members[proof.offender]
        turn.log("warning", "equivocation", offender=offender.hex()[:16], view=self._views.view)
        turn.add(Misbehaviour(offender, "equivocation", proof))

    def _may_help(self, turn: Turn, kind: str, peer: NodeId) -> bool:
        """At most one answer of a kind per peer and half retransmission period."""
        key = (kind, peer)
        last_ms = self._helped.get(key)
        if last_ms is not None and turn.now < last_ms + self._timing.retransmit_ms // 2:
            return False
        if len(self._helped) >= _HELPED_PEERS:
            self._helped.clear()
        self._helped[key] = turn.now
        return True

    def _may_serve(self, turn: Turn, peer: NodeId) -> bool:
        """Whether a peer may have more blocks now, which have to be read and decoded for it.

        A question is a few bytes, an answer up to two megabytes. An honest peer executes what it got
        before it asks for more, and so never gets as much.
        """
        period = turn.now // max(1, self._timing.retransmit_ms // 2)
        if period != self._served_in or len(self._served) >= _HELPED_PEERS:
            self._served_in = period
            self._served.clear()
        self._served[peer] += _QUESTION_BYTES
        return self._served[peer] <= SERVED_BYTES

    # -- signing -----------------------------------------------------------------------------------

    def _sign_ballot(self, turn: Turn, domain: Domain, ballot: Ballot) -> bytes | None:
        what = ballot.signed_bytes(domain, self._chain_id)
        return self._sign(turn, domain, ballot.view, ballot.height, what)

    def _sign(
        self, turn: Turn, domain: Domain, view: int, height: int, what: bytes
    ) -> bytes | None:
        """A signature, or None where the high-water mark refuses: better silent than twice."""
        if self._me is None:
            raise AssertionError("an observer is asked for nothing that it would have to sign")
        try:
            return self._signer.sign(turn, domain, (self._validators.set_id, view, height), what)
        except SigningRefused as refusal:
            turn.log("error", "signing-refused", detail=str(refusal))
            return None

    # -- timers ------------------------------------------------------------------------------------

    def _set_timer(self, turn: Turn, name: str, delay_ms: int) -> None:
        self._timers[name] = turn.now + delay_ms
        turn.add(SetTimer(name, turn.now + delay_ms))

    def _cancel_timer(self, turn: Turn, name: str) -> None:
        if self._timers.pop(name, None) is not None:
            turn.add(CancelTimer(name))

    def _set_silence(self, turn: Turn) -> None:
        """A block is due within the interval; patience doubles with every failed view (4.5.2)."""
        if self._me is None:
            return
        patience_ms = self._timing.patience_ms(max(0, self._views.attempts - 1))
        self._set_timer(turn, SILENCE, self._timing.interval_ms + patience_ms)
