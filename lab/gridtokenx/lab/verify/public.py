"""What a public node keeps beside its chain: seals, randomness, unfinal blocks, its slot and votes.

Law of the file: **a mark is never below what can be seen to be signed**: the last authored slot is at
or above every block of this author, and its votes are of rounds that are not over.
"""

from collections.abc import Iterator
from typing import Final

from gridtokenx.core.codec import encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.core.machine import Reader
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.chains import ChainFacts
from gridtokenx.lab.replay import Replayed
from gridtokenx.lab.verify.findings import NEVER_SIGN, REFETCH, Finding, name_of, read_as
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.records import META, height_key
from gridtokenx.public.chain import PublicGenesis
from gridtokenx.public.grandpa.messages import CompletedRound, SignedVote
from gridtokenx.public.grandpa.voter import TABLE as GRANDPA
from gridtokenx.public.machine import UNFINAL
from gridtokenx.public.slots import Epoch, SealedBlock, read_claim, seal_check
from gridtokenx.public.sync import SEALS

TABLES: Final = (SEALS, UNFINAL, GRANDPA)
SLOT: Final = b"slot"
EPOCH: Final = b"epoch"
VOTE: Final = b"vote:"
COMPLETED: Final = b"completed"
_VERIFIER: Final = Ed25519Verifier()


class Walk:
    """Goes along the chain as it is re-executed; afterwards judges what the engine keeps."""

    def __init__(self, chain: ChainFacts, store: Reader, identity: bytes) -> None:
        assert isinstance(chain.genesis, PublicGenesis), "the caller chose this file by the chain"
        self.sets: Final[dict[int, ValidatorSet]] = {}
        self._chain_id: Final = chain.chain_id
        self._rules: Final = chain.genesis.slot_rules
        self._store: Final = store
        self._identity: Final = identity
        self._epoch = Epoch.genesis(self._rules)
        self._authored = -1
        self._head = 0
        self._found: list[Finding] = []

    def take(self, replayed: Replayed) -> None:
        """One re-executed block."""
        header, validators = replayed.executed.header, replayed.validators
        self.sets[validators.set_id] = validators
        self._head = header.height
        if header.height == 0:
            return
        where = f"block {header.height}"
        try:
            claim = read_claim(header)
        except RemoteFault as fault:
            self._found.append(Finding(where, f"claims no slot: {fault}", REFETCH))
            return
        self._epoch = self._epoch.at(header.round, self._rules).mix(claim.vrf_output)
        self._note_author(header, validators)
        seal = self._store.get(SEALS, height_key(header.height))
        if seal is None or not _is_sealed(header, seal, validators):
            what = "has no seal" if seal is None else "is not sealed by its author"
            self._found.append(Finding(where, what, REFETCH))

    def _note_author(self, header: Header, validators: ValidatorSet) -> None:
        if read_claim(header).authority == validators.index_of(self._identity):
            self._authored = max(self._authored, header.round)

    def findings(self) -> Iterator[Finding]:
        """Whatever is wrong."""
        yield from self._found
        yield from self._check_seals()
        yield from self._check_unfinal()
        yield from self._check_meta()
        for key, raw in self._store.scan(GRANDPA):
            problem = self._problem_of(key, raw)
            if problem is not None:
                where = f"table {GRANDPA!r}, record {_vote_name(key)}"
                yield Finding(where, problem, NEVER_SIGN)

    def _check_seals(self) -> Iterator[Finding]:
        for key, _ in self._store.scan(SEALS):
            if len(key) != 8 or not 0 < int.from_bytes(key, "big") <= self._head:
                where = f"table {SEALS!r}, record {name_of(key)}"
                yield Finding(where, f"is of no block up to the head, {self._head}", REFETCH)

    def _check_unfinal(self) -> Iterator[Finding]:
        newest = self.sets[max(self.sets)]
        for key, raw in self._store.scan(UNFINAL):
            sealed = read_as(raw, SealedBlock)
            where = f"table {UNFINAL!r}, block {int.from_bytes(key[:8], 'big')}"
            if sealed is None or key != height_key(sealed.header.height) + sealed.header.hash:
                yield Finding(where, "is not the block that its key names", REFETCH)
                continue
            validators = self.sets.get(sealed.header.set_id)
            if validators is not None and not _is_sealed(sealed.header, sealed.seal, validators):
                yield Finding(where, "is not sealed by its author", REFETCH)
            elif sealed.header.set_id == newest.set_id:
                self._note_author(sealed.header, newest)

    def _check_meta(self) -> Iterator[Finding]:
        epoch = self._store.get(META, EPOCH)
        if epoch != encode(self._epoch):
            what = "is missing" if epoch is None else "is not what the chain's lotteries make of it"
            yield Finding(f"table {META!r}, record epoch", what, REFETCH)
        slot = self._store.get(META, SLOT)
        if self._authored >= 0 and int.from_bytes(slot or b"", "big") < self._authored:
            has = "missing" if slot is None else f"{int.from_bytes(slot, 'big')}"
            what = f"is {has}, but this node authored slot {self._authored}"
            yield Finding(f"table {META!r}, record slot", what, NEVER_SIGN)
        for key, _ in self._store.scan(META):
            if key not in (b"head", EPOCH, SLOT):
                where = f"table {META!r}, record {name_of(key)}"
                yield Finding(where, "is nothing that a public node keeps", REFETCH)

    # -- votes -------------------------------------------------------------------------------------

    def _problem_of(self, key: bytes, raw: bytes) -> str | None:
        if key == COMPLETED:
            return self._problem_of_round(raw)
        vote = read_as(raw, SignedVote)
        if vote is None or not key.startswith(VOTE):
            return "is no vote"
        if key != VOTE + vote.round.to_bytes(8, "big") + bytes((vote.stage,)):
            return "is not the vote that its key names"
        validators = self.sets.get(vote.set_id)
        if validators is None:
            return None  # of a set that begins above the head; its rounds are judged later
        if validators.index_of(self._identity) != vote.authority or not self._is_signed(vote):
            return "is not signed by this node"
        return None

    def _problem_of_round(self, raw: bytes) -> str | None:
        completed = read_as(raw, CompletedRound)
        if completed is None or not completed.is_consistent:
            return "is no completed round"
        if completed.set_id in self.sets and not all(map(self._is_signed, completed.votes)):
            return f"round {completed.round} holds a signature that is not valid"
        return None

    def _is_signed(self, vote: SignedVote) -> bool:
        validators = self.sets[vote.set_id]
        if vote.authority >= validators.size:
            return False
        key = validators.members[vote.authority]
        return _VERIFIER.verify(key, vote.signed_bytes(self._chain_id), vote.signature)


def _is_sealed(header: Header, seal: bytes, validators: ValidatorSet) -> bool:
    try:
        check = seal_check(header, seal, validators)
    except RemoteFault:
        return False
    return _VERIFIER.verify(check.public_key, check.message, check.signature)


def _vote_name(key: bytes) -> str:
    if key.startswith(VOTE) and len(key) == len(VOTE) + 9:
        return f"vote of round {int.from_bytes(key[len(VOTE) : -1], 'big')}, stage {key[-1]}"
    return name_of(key)
