"""What must hold of a PBFT chain, looked at from outside, at every commit, message and step.

Law of the file: **a checker believes nothing that a replica computed.** Blocks are executed again,
certificates verified again, votes compared as they leave.

==================  ============================================================================
checker             promise
==================  ============================================================================
agreement           no two honest replicas commit different blocks at one height
validity            a committed block follows from its parent by the ledger's rules, holds only
                    what clients sent, and that once
durability          what a replica acknowledged is on its disk, also after any crash
certificate         every commit has a quorum's certificate beside it on disk
views               the (set, view) that an honest replica shows never goes back, across all its lives
contradiction       no honest replica signs two different statements about one thing
innocence           nobody honest is accused with proof
light-client        a client that knows genesis alone follows through every handover
survival            an honest replica ends only if its disk fails
invariants          the ledger's own laws hold in every state
liveness            a healed core goes on, and takes new work, within the bound (`run.py`)
==================  ============================================================================
"""

from collections.abc import Hashable, Mapping
from typing import Final

from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Verifier
from gridtokenx.core.machine import Committed, Instant, NodeId
from gridtokenx.finality.certificates import CommitCertificate, verify_certificate
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.outcome import Violation
from gridtokenx.lab.sim.pbft.follower import Follower, Rule
from gridtokenx.lab.sim.pbft.messages import view_in, vote_in
from gridtokenx.lab.sim.world import SimulatedNode
from gridtokenx.ledger.records import final_height, load_finality
from gridtokenx.ledger.runtime import ExecutedBlock, InvalidBlock, Ledger
from gridtokenx.pbft.membership import validators_of
from gridtokenx.pbft.messages import set_of

_KEPT_PROOFS: Final = 256


class Checkers:
    """All checkers of one chain.

    Args:
        ledger: a ledger that no replica uses.
        genesis: block 0.
        validators: who certifies, by the rules of the replicas under test.
        verifier: of signatures.
        index: of every node, by its key.
        rule: how the replicas under test count votes.
    """

    def __init__(
        self,
        ledger: Ledger,
        genesis: ExecutedBlock,
        validators: ValidatorSet,
        verifier: Verifier,
        index: Mapping[NodeId, int],
        rule: Rule = lambda validators: validators,
    ) -> None:
        self._ledger: Final = ledger
        self._rule: Final = rule
        self._index: Final = index
        self._verifier: Final = verifier
        self._follower: Final = Follower(genesis, rule(validators), verifier, rule)
        self.sets: Final = {validators.set_id: rule(validators)}
        """Every set that was ever announced, by its number."""
        self.newest = genesis
        """The highest committed block, as it was executed here."""
        self._chain: Final = {0: genesis}
        self._hashes: Final[dict[int, bytes]] = {0: genesis.hash}
        self._votes: Final[dict[tuple[int, Hashable], bytes]] = {}
        self._views: Final[dict[int, tuple[int, int]]] = {}
        self._proved: Final[dict[tuple[bytes, bytes], CommitCertificate]] = {}
        self._lives: Final[dict[int, int]] = {}
        self._acknowledged: Final[dict[int, int]] = {}

    @property
    def height(self) -> int:
        """The highest committed height that was checked."""
        return self.newest.height

    def committed(
        self, index: int, node: SimulatedNode, effect: Committed, now: Instant
    ) -> ExecutedBlock | None:
        """An honest replica acknowledges a block; returns it if it is the first to."""
        executed = effect.value
        if not isinstance(executed, ExecutedBlock):
            raise TypeError(f"committed a {type(executed).__name__}")
        height, hash_ = effect.height, executed.hash
        known = self._hashes.get(height)
        if known is not None and known != hash_:
            raise Violation(
                "agreement",
                f"{self._who(index)} commits {hash_.hex()[:12]} at height {height}, where"
                f" {known.hex()[:12]} is committed",
            )
        proof = self._check_certificate(index, node, executed)
        self._acknowledged[index] = max(height, self._acknowledged.get(index, 0))
        if known is not None:
            return None
        self._hashes[height] = hash_
        self._execute(executed)
        following = self._rule(validators_of(self.newest.state))
        self.sets.setdefault(following.set_id, following)
        self._follower.take(executed.header, proof, following, now)
        return executed

    def emitted(self, index: int, message: Wire) -> None:
        """An honest replica sends a message."""
        self._check_view(index, message)
        of_set = set_of(message)
        if of_set is not None and of_set not in self.sets:
            raise Violation(
                "durability",
                f"{self._who(index)} speaks in set {of_set}, which no committed block announces",
            )
        vote = vote_in(message, self.sets)
        if vote is None:
            return
        set_id, seat, subject, statement = vote
        if self._index[self.sets[set_id].members[seat]] != index:
            return
        known = self._votes.setdefault((index, subject), statement)
        if known != statement:
            raise Violation(
                "contradiction",
                f"{self._who(index)} says {statement.hex()[:12]} about {subject}, and had said"
                f" {known.hex()[:12]}",
            )

    def stepped(self, index: int, node: SimulatedNode) -> None:
        """An honest replica has taken a step."""
        if self._lives.get(index) != node.life:
            self._lives[index] = node.life
            self._check_durable(index, node)

    def accused(self, node: SimulatedNode, byzantine: frozenset[int]) -> None:
        """A replica has reported somebody."""
        for report in node.misbehaviours:
            offender = self._index.get(report.offender)
            if offender not in byzantine:
                raise Violation("innocence", f"{self._who(offender)} is accused of {report.kind}")
        node.misbehaviours.clear()

    def check_disk(self, index: int, node: SimulatedNode) -> None:
        """At the end: an honest disk holds a gap-free prefix of the one chain."""
        self._check_durable(index, node)

    def _who(self, index: int | None) -> str:
        """A node, for people."""
        return f"replica {index}"

    # -- parts -------------------------------------------------------------------------------------

    def _check_view(self, index: int, message: Wire) -> None:
        """What it says of its view; what it may forget in a crash it has told nobody."""
        said = view_in(message)
        if said is None:
            return
        before = self._views.get(index, (0, 0))
        if said < before:
            raise Violation(
                "views", f"{self._who(index)} went from (set, view) {before} back to {said}"
            )
        self._views[index] = said

    def _check_durable(self, index: int, node: SimulatedNode) -> None:
        stored, promised = final_height(node.store) or 0, self._acknowledged.get(index, 0)
        if stored < promised:
            raise Violation(
                "durability",
                f"{self._who(index)} acknowledged height {promised}; its disk ends at {stored}",
            )

    def _check_certificate(
        self, index: int, node: SimulatedNode, executed: ExecutedBlock
    ) -> CommitCertificate:
        raw = load_finality(node.store, executed.height)
        if raw is None:
            raise Violation(
                "certificate",
                f"{self._who(index)} has no proof of height {executed.height} on disk",
            )
        known = self._proved.get((executed.hash, raw))
        if known is not None:
            return known
        members = self.sets.get(executed.header.set_id)
        if members is None:
            raise Violation(
                "certificate", f"height {executed.height}: set {executed.header.set_id} is unknown"
            )
        try:
            proof = decode_own(raw, CommitCertificate)
            verify_certificate(proof, executed.header, members, self._verifier)
        except RemoteFault as fault:
            raise Violation(
                "certificate", f"{self._who(index)}, height {executed.height}: {fault}"
            ) from None
        if len(self._proved) >= _KEPT_PROOFS:
            self._proved.clear()
        self._proved[executed.hash, raw] = proof
        return proof

    def _again(self, executed: ExecutedBlock) -> ExecutedBlock:
        """The block, executed apart from all replicas.

        An honest replica may take over the state of a block below which no honest one has committed:
        a traitor alone held the proofs. What is below is then never seen, and its certificate is
        all that there is to judge.
        """
        parent = self._chain.get(executed.height - 1)
        if parent is None:
            if executed.state.root != executed.header.state_root:
                raise Violation("validity", f"height {executed.height}: a state of another root")
            return executed
        try:
            return self._ledger.execute(parent, executed.block)
        except InvalidBlock as fault:
            raise Violation("validity", f"height {executed.height}: {fault.detail}") from None

    def _execute(self, executed: ExecutedBlock) -> None:
        again = self._again(executed)
        self._chain[executed.height] = again
        self._chain.pop(executed.height - 2, None)
        if again.height > self.newest.height:
            self.newest = again
        for sentence in self._ledger.check_invariants(again.state):
            raise Violation("invariants", f"height {executed.height}: {sentence}")
