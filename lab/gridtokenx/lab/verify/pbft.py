"""What a PBFT replica keeps beside its chain: high-water marks, and the votes of what is in flight.

Law of the file: **a mark is never below a vote that can be seen**, in the log or in a certificate. A
replica whose marks went back could vote twice for one (set, view, height).
"""

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import Domain, Ed25519Verifier, sha256
from gridtokenx.core.machine import Reader
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.chains import ChainFacts
from gridtokenx.lab.replay import Replayed
from gridtokenx.lab.verify.findings import NEVER_SIGN, REFETCH, Finding, name_of, read_as
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.records import BASE, HEAD, META, load_finality
from gridtokenx.pbft.journal import LOG, ViewRecord
from gridtokenx.pbft.marks import Mark
from gridtokenx.pbft.messages import (
    Ballot,
    Commit,
    NewView,
    Prepare,
    PreparedCertificate,
    Reproposal,
    ViewChange,
)
from gridtokenx.pbft.rotation import primary_of
from gridtokenx.pbft.snapshot import SNAPSHOT
from gridtokenx.pbft.terms import TERMS, Term

TABLES: Final = (LOG, TERMS, SNAPSHOT)
MARK: Final = b"mark/"
KINDS: Final = (
    Domain.PBFT_PRE_PREPARE,
    Domain.PBFT_PREPARE,
    Domain.PBFT_COMMIT,
    Domain.PBFT_VIEW_CHANGE,
    Domain.PBFT_NEW_VIEW,
)
Position = tuple[int, int, int]
T = TypeVar("T", bound=Wire)
_VERIFIER: Final = Ed25519Verifier()


class Walk:
    """Goes along the chain as it is re-executed; afterwards judges what the engine keeps."""

    def __init__(self, chain: ChainFacts, store: Reader, identity: bytes) -> None:
        self.sets: Final[dict[int, ValidatorSet]] = {}
        self._chain: Final = chain
        self._store: Final = store
        self._identity: Final = identity
        self._uncertified: list[int] = []
        self._committed: Position | None = None
        self._head = 0

    def take(self, replayed: Replayed) -> None:
        """One re-executed block."""
        self.sets[replayed.validators.set_id] = replayed.validators
        self._head = replayed.executed.height
        if self._head == 0:
            return
        if not replayed.proved:
            self._uncertified.append(self._head)
            return
        self._note_own_vote(replayed)

    def _note_own_vote(self, replayed: Replayed) -> None:
        raw = load_finality(self._store, self._head)
        certificate = None if raw is None else read_as(raw, CommitCertificate)
        index = replayed.validators.index_of(self._identity)
        if certificate is None or index is None:
            return
        if any(signed.index == index for signed in certificate.signatures):
            vote = certificate.vote
            position = (vote.set_id, vote.view, vote.height)
            self._committed = max(self._committed or position, position)

    def findings(self) -> Iterator[Finding]:
        """Whatever is wrong."""
        for height in self._uncertified:
            yield Finding(f"block {height}", "has no certificate of its own", REFETCH)
        yield from self._check_terms()
        marks: dict[Domain, Mark] = {}
        yield from self._check_marks(marks)
        yield from self._check_meta()
        for key, raw in self._store.scan(LOG):
            yield from self._check_log(key, raw, marks)
        if self._committed is not None:
            yield from self._check_mark(
                marks, Domain.PBFT_COMMIT, self._committed, None, "the chain holds"
            )

    # -- terms and marks ---------------------------------------------------------------------------

    def _check_terms(self) -> Iterator[Finding]:
        for key, raw in self._store.scan(TERMS):
            term = read_as(raw, Term)
            known = self.sets.get(int.from_bytes(key, "big"))
            # the last term may have begun upon the head: no block of its own is here yet
            is_next = int.from_bytes(key, "big") == max(self.sets, default=0) + 1
            if term is None or (term.validators != known and not is_next):
                where = f"table {TERMS!r}, set {name_of(key)}"
                yield Finding(where, "is not the set that the chain handed over to", REFETCH)

    def _check_meta(self) -> Iterator[Finding]:
        for key, _ in self._store.scan(META):
            if key not in (HEAD, BASE) and not key.startswith(MARK):
                where = f"table {META!r}, record {name_of(key)}"
                yield Finding(where, "is nothing that a replica keeps", REFETCH)

    def _check_marks(self, marks: dict[Domain, Mark]) -> Iterator[Finding]:
        for key, raw in self._store.scan(META, MARK):
            kind = next((each for each in KINDS if each.value == key[len(MARK) :]), None)
            mark = read_as(raw, Mark)
            if kind is None or mark is None:
                where = f"table {META!r}, record {name_of(key)}"
                yield Finding(where, "is no high-water mark", NEVER_SIGN)
            else:
                marks[kind] = mark

    def _check_mark(
        self,
        marks: dict[Domain, Mark],
        kind: Domain,
        position: Position,
        what: bytes | None,
        source: str,
    ) -> Iterator[Finding]:
        """A vote that can be seen is at or below the mark of its kind, and at it the same."""
        mark = marks.get(kind)
        where = f"high-water mark of {kind.name}"
        if mark is None:
            text = f"is missing, but {source} a vote at (set, view, height) {position}"
        elif mark.position < position:
            text = f"is {mark.position}, but {source} a later vote, {position}"
        elif mark.position == position and what is not None and mark.statement != _hash(what):
            text = f"is of another statement at {position} than {source}"
        else:
            return
        yield Finding(where, text, NEVER_SIGN)

    # -- the log -----------------------------------------------------------------------------------

    def _check_log(self, key: bytes, raw: bytes, marks: dict[Domain, Mark]) -> Iterator[Finding]:
        if key[8:9] == b"/" and int.from_bytes(key[:8], "big") <= self._head:
            return  # of a height that is committed: never read again
        where = f"table {LOG!r}, record {name_of(key)}"
        check = self._check_of(key)
        problem = "is nothing that a replica keeps" if check is None else check(raw, marks)
        if isinstance(problem, str):
            yield Finding(where, problem, NEVER_SIGN)
        elif problem is not None:
            yield from problem

    def _check_of(
        self, key: bytes
    ) -> "Callable[[bytes, dict[Domain, Mark]], str | Iterator[Finding] | None] | None":
        named = {
            b"view": self._view,
            b"view-change": self._view_change,
            b"new-view": self._new_view,
        }
        height = int.from_bytes(key[:8], "big")
        part = key[8:]
        if part.startswith(b"/body/"):
            return lambda raw, _marks: _body(raw, height, part[len(b"/body/") :])
        of_height = {
            b"/accepted": self._accepted,
            b"/prepare": self._prepare,
            b"/commit": self._commit,
            b"/prepared": self._prepared,
        }
        if part in of_height:
            return lambda raw, marks: of_height[part](raw, marks, height)
        return named.get(key)

    def _view(self, raw: bytes, _marks: dict[Domain, Mark]) -> str | None:
        return None if read_as(raw, ViewRecord) is not None else "is no view"

    def _view_change(self, raw: bytes, marks: dict[Domain, Mark]) -> str | Iterator[Finding] | None:
        change = read_as(raw, ViewChange)
        if change is None:
            return "is no view-change"
        what = change.signed_bytes(self._chain.chain_id)
        if not self._is_own(change.body.set_id, change.body.replica, what, change.signature):
            return "is not signed by this node"
        position = (change.body.set_id, change.body.view, 0)
        return self._check_mark(marks, Domain.PBFT_VIEW_CHANGE, position, what, "the log holds")

    def _new_view(self, raw: bytes, _marks: dict[Domain, Mark]) -> str | None:
        opened = read_as(raw, NewView)
        if opened is None:
            return "is no new-view"
        validators = self._set(opened.body.set_id)
        primary = None if validators is None else primary_of(opened.body.view, validators)
        what = opened.signed_bytes(self._chain.chain_id)
        if primary is None or not self._signed(opened.body.set_id, primary, what, opened.signature):
            return "is not signed by the primary of its view"
        return None

    def _accepted(self, raw: bytes, _marks: dict[Domain, Mark], height: int) -> str | None:
        proposal = read_as(raw, Reproposal)
        if proposal is None or proposal.ballot.height != height:
            return "is no proposal for this height"
        ballot = proposal.ballot
        if not self._by_primary(ballot, proposal.signature):
            return "is not signed by the primary of its view"
        return None

    def _prepare(
        self, raw: bytes, marks: dict[Domain, Mark], height: int
    ) -> str | Iterator[Finding] | None:
        vote = read_as(raw, Prepare)
        if vote is None or vote.ballot.height != height:
            return "is no prepare for this height"
        what = vote.ballot.signed_bytes(Domain.PBFT_PREPARE, self._chain.chain_id)
        if not self._is_own(vote.ballot.set_id, vote.replica, what, vote.signature):
            return "is not signed by this node"
        position = (vote.ballot.set_id, vote.ballot.view, height)
        return self._check_mark(marks, Domain.PBFT_PREPARE, position, what, "the log holds")

    def _commit(
        self, raw: bytes, marks: dict[Domain, Mark], height: int
    ) -> str | Iterator[Finding] | None:
        commit = read_as(raw, Commit)
        if commit is None or commit.vote.height != height:
            return "is no commit for this height"
        what = commit.vote.signed_bytes(self._chain.chain_id)
        if not self._is_own(commit.vote.set_id, commit.replica, what, commit.signature):
            return "is not signed by this node"
        position = (commit.vote.set_id, commit.vote.view, height)
        return self._check_mark(marks, Domain.PBFT_COMMIT, position, what, "the log holds")

    def _prepared(self, raw: bytes, _marks: dict[Domain, Mark], height: int) -> str | None:
        proof = read_as(raw, PreparedCertificate)
        if proof is None or proof.header.height != height:
            return "proves no block of this height"
        what = proof.ballot.signed_bytes(Domain.PBFT_PREPARE, self._chain.chain_id)
        set_id = proof.header.set_id
        if not self._by_primary(proof.ballot, proof.proposal) or not all(
            self._signed(set_id, signed.index, what, signed.signature) for signed in proof.prepares
        ):
            return "holds a signature that is not valid"
        return None

    # -- signatures --------------------------------------------------------------------------------

    def _set(self, set_id: int) -> ValidatorSet | None:
        """A set of the chain, or the one that begins upon its head."""
        known = self.sets.get(set_id)
        if known is None:
            raw = self._store.get(TERMS, set_id.to_bytes(8, "big"))
            term = None if raw is None else read_as(raw, Term)
            known = None if term is None else term.validators
        return known

    def _by_primary(self, ballot: Ballot, signature: bytes) -> bool:
        validators = self._set(ballot.set_id)
        if validators is None:
            return False
        what = ballot.signed_bytes(Domain.PBFT_PRE_PREPARE, self._chain.chain_id)
        primary = primary_of(ballot.view, validators)
        return self._signed(ballot.set_id, primary, what, signature)

    def _is_own(self, set_id: int, index: int, what: bytes, signature: bytes) -> bool:
        validators = self._set(set_id)
        if validators is None or validators.index_of(self._identity) != index:
            return False
        return self._signed(set_id, index, what, signature)

    def _signed(self, set_id: int, index: int, what: bytes, signature: bytes) -> bool:
        validators = self._set(set_id)
        if validators is None or index >= validators.size:
            return False
        return _VERIFIER.verify(validators.members[index], what, signature)


def _body(raw: bytes, height: int, block_hash: bytes) -> str | None:
    block = read_as(raw, Block)
    if block is None or block.height != height or block.hash != block_hash:
        return "is not the block that its key names"
    return None


def _hash(what: bytes) -> bytes:
    """A mark's hash of a signed statement; see `pbft/marks.py`."""
    return sha256(b"mark", what)
