"""What must hold of a network while it runs, and what it is at.

The PBFT chains are watched as a chain by itself is (`sim/pbft/checkers.py`), the public one by what its
rules say. That blocks follow by the ledgers' rules, that energy, money and packets add up across
chains, is judged when all is over, by the audit that judges real networks (`testnet/audit.py`).

==================  ============================================================================
checker             promise, beside those of the PBFT chains
==================  ============================================================================
agreement           no two validators finalise different public blocks at one height
durability          what a node acknowledged is on its disk, after any crash
certificate         a justification beside a public block convinces a stranger
contradiction       no honest validator votes or authors twice for one thing
innocence           nobody honest is accused with proof, on the public chain either
honest-range        a feed's value lies between what two honest oracles observed
survival            no process ends by itself, unless its disk fails
audit: ...          the invariants of a real network's summary
==================  ============================================================================
"""

from collections.abc import Mapping, Sequence
from typing import Final

from gridtokenx.core.codec import Wire, decode_own
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Verifier
from gridtokenx.core.machine import Committed, Instant, NodeId
from gridtokenx.finality.justifications import Justification, verify_justification
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.chains import ChainFacts
from gridtokenx.host.history import ValidatorsOf
from gridtokenx.lab.replay import decoded_events
from gridtokenx.lab.sim.outcome import Violation
from gridtokenx.lab.sim.pbft.checkers import Checkers
from gridtokenx.lab.sim.pbft.follower import Rule
from gridtokenx.lab.sim.world import SimulatedNode
from gridtokenx.ledger.records import final_height, load_finality
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.oracle.chain.feeds import RoundClosed, SubmitObservation
from gridtokenx.oracle.chain.rounds import Outcome, Status
from gridtokenx.public.grandpa.messages import Votes
from gridtokenx.public.messages import NewBlock
from gridtokenx.public.slots import read_claim


class PbftCheckers(Checkers):
    """As of a chain by itself, but for execution: the audit executes every block once more."""

    names: Sequence[str] = ()
    """Of processes, by number."""

    def _execute(self, executed: ExecutedBlock) -> None:
        newest = self.newest
        if executed.height == newest.height + 1 and executed.header.parent != newest.hash:
            raise Violation("validity", f"height {executed.height} does not follow from its parent")
        if executed.height > newest.height:  # a gap is a state that was taken over
            self.newest = executed

    def _who(self, index: int | None) -> str:
        return self.names[index] if index is not None else "somebody unknown"


class PublicCheckers:
    """All checkers of the public chain.

    Args:
        genesis: block 0.
        validators: the first set.
        validators_of: reads from a state who finalises the next block.
        verifier: of signatures.
        numbers: of every process, by its node id, and
        byzantine: which of them may contradict themselves; honest ones pass that on.
        names: of processes, by number.
    """

    def __init__(
        self,
        genesis: ExecutedBlock,
        validators: ValidatorSet,
        validators_of: ValidatorsOf,
        verifier: Verifier,
        numbers: Mapping[NodeId, int],
        byzantine: frozenset[int],
        names: Sequence[str],
    ) -> None:
        self.newest = genesis
        self._names: Final = names
        self.sets: Final = {validators.set_id: validators}
        """Every set that a final block announced, by its number."""
        self._validators_of: Final = validators_of
        self._verifier: Final = verifier
        self._numbers: Final = numbers
        self._byzantine: Final = byzantine
        self._hashes: Final[dict[int, bytes]] = {0: genesis.hash}
        self._proved: Final[set[tuple[bytes, bytes]]] = set()
        self._said: Final[dict[tuple[int, int, int, int], bytes]] = {}
        self._authored: Final[dict[tuple[int, int, int], bytes]] = {}
        self._acknowledged: Final[dict[int, int]] = {}
        self._lives: Final[dict[int, int]] = {}

    def committed(self, index: int, node: SimulatedNode, effect: Committed) -> ExecutedBlock | None:
        """A validator acknowledges a block; returns it if it is the first to."""
        executed = effect.value
        assert isinstance(executed, ExecutedBlock), "chains commit executed blocks"
        known = self._hashes.get(executed.height)
        if known is not None and known != executed.hash:
            raise Violation(
                "agreement",
                f"{self._names[index]} finalises {executed.hash.hex()[:12]} at public height"
                f" {executed.height}, where {known.hex()[:12]} is final",
            )
        self._acknowledged[index] = executed.height
        self._check_durable(index, node)
        self._check_proof(index, node, executed)
        if known is not None:
            return None
        self._hashes[executed.height] = executed.hash
        self.newest = executed
        if executed.header.next_set_hash != self.sets[executed.header.set_id].hash:
            following = self._validators_of(executed.state)
            self.sets[following.set_id] = following
        return executed

    def emitted(self, message: Wire) -> None:
        """A validator sends a message; what it passes on was said by another honest one."""
        match message:
            case Votes(votes):
                for vote in votes:
                    if not self._is_honest(vote.set_id, vote.authority):
                        continue
                    subject = (vote.set_id, vote.authority, vote.round, vote.stage)
                    if self._said.setdefault(subject, vote.target_hash) != vote.target_hash:
                        raise Violation("contradiction", f"(set, voter, round, stage) {subject}")
            case NewBlock(sealed):
                header = sealed.block.header
                place = (header.set_id, read_claim(header).authority, header.round)
                if not self._is_honest(*place[:2]):
                    return
                if self._authored.setdefault(place, header.hash) != header.hash:
                    raise Violation("contradiction", f"two blocks of (set, author, slot) {place}")

    def stepped(self, index: int, node: SimulatedNode) -> None:
        """A validator has taken a step."""
        if self._lives.get(index) != node.life:
            self._lives[index] = node.life
            self._check_durable(index, node)

    def accused(self, node: SimulatedNode) -> None:
        """A validator has reported somebody."""
        for report in node.misbehaviours:
            offender = self._numbers.get(report.offender)
            if offender not in self._byzantine:
                who = "somebody unknown" if offender is None else self._names[offender]
                raise Violation("innocence", f"{who} is accused of {report.kind}")
        node.misbehaviours.clear()

    def _is_honest(self, set_id: int, seat: int) -> bool:
        """Whether that seat's own is; of a set that no final block announced nobody is asked."""
        members = self.sets.get(set_id)
        if members is None:
            return False
        return self._numbers[members.members[seat]] not in self._byzantine

    def _check_proof(self, index: int, node: SimulatedNode, executed: ExecutedBlock) -> None:
        """What is beside a block on disk convinces a stranger; not every block has a justification."""
        raw = load_finality(node.store, executed.height)
        if raw is None or (executed.hash, raw) in self._proved:
            return
        members = self.sets.get(executed.header.set_id)
        if members is None:
            raise Violation(
                "certificate", f"{self._names[index]}: a block of set {executed.header.set_id}"
            )
        try:
            proof = decode_own(raw, Justification)
            verify_justification(proof, executed.header, members, self._verifier)
        except RemoteFault as fault:
            raise Violation(
                "certificate", f"{self._names[index]}, public height {executed.height}: {fault}"
            ) from None
        self._proved.add((executed.hash, raw))

    def _check_durable(self, index: int, node: SimulatedNode) -> None:
        stored, promised = final_height(node.store) or 0, self._acknowledged.get(index, 0)
        if stored < promised:
            raise Violation(
                "durability",
                f"{self._names[index]} acknowledged height {promised}; its disk ends at {stored}",
            )


class FeedCheckers:
    """Prices: what the oracle chain takes for one lies within what its honest members observed.

    Args:
        facts: of the oracle chain.
        numbers: of every process, by its node id, and
        byzantine: which of them are not honest.
    """

    def __init__(
        self, facts: ChainFacts, numbers: Mapping[NodeId, int], byzantine: frozenset[int]
    ) -> None:
        self._ledger: Final = facts.ledger
        self._numbers: Final = numbers
        self._byzantine: Final = byzantine
        self._observed: Final[dict[tuple[str, int], list[int]]] = {}
        self.rounds = 0
        """How many had a value, and were looked at."""

    def take(self, executed: ExecutedBlock) -> None:
        """One more block of the oracle chain; raises if a round closed outside the range."""
        for transaction in executed.block.transactions:
            number = self._numbers.get(transaction.body.sender)
            if number is None or number in self._byzantine:
                continue
            for call in self._ledger.decode_calls(transaction):
                if isinstance(call, SubmitObservation):
                    self._observed.setdefault((call.feed, call.round), []).append(call.value)
        for event in decoded_events(self._ledger, executed):
            if isinstance(event, RoundClosed):
                self._judge(event.feed, event.outcome)

    def _judge(self, feed: str, outcome: Outcome) -> None:
        honest = self._observed.pop((feed, outcome.round), [])
        if outcome.status is Status.STALE:
            return
        self.rounds += 1
        if not honest or not min(honest) <= outcome.value <= max(honest):
            raise Violation(
                "honest-range",
                f"{feed}, round {outcome.round}: {outcome.value}; the honest observed {sorted(honest)}",
            )


class NetworkCheckers:
    """The checkers of all three chains.

    Args:
        facts: by chain.
        numbers: of every process, by its node id.
        byzantine: numbers of those that are not honest; nothing is checked of what they say.
        verifier: of signatures.
        validators_of: reads from a public state who finalises the next block.
        rule: how the PBFT chains under test count votes.
        names: of processes, by number.
    """

    def __init__(
        self,
        facts: Mapping[str, ChainFacts],
        numbers: Mapping[NodeId, int],
        byzantine: frozenset[int],
        verifier: Verifier,
        validators_of: ValidatorsOf,
        rule: Rule,
        names: Sequence[str],
    ) -> None:
        self._numbers: Final = numbers
        self._byzantine: Final = byzantine
        public = facts["public"]
        self.public: Final = PublicCheckers(
            public.genesis_block,
            public.validators,
            validators_of,
            verifier,
            numbers,
            byzantine,
            names,
        )
        self.feeds: Final = FeedCheckers(facts["oracle"], numbers, byzantine)
        self.pbft: Final = {
            name: PbftCheckers(
                facts[name].ledger,
                facts[name].genesis_block,
                facts[name].validators,
                verifier,
                numbers,
                rule,
            )
            for name in ("consortium", "oracle")
        }
        for each in self.pbft.values():
            each.names = names

    def heights(self) -> dict[str, int]:
        """The highest final height of each chain."""
        found = {name: each.height for name, each in self.pbft.items()}
        return {"public": self.public.newest.height, **found}

    def sets(self) -> dict[str, dict[int, ValidatorSet]]:
        """Every set of each chain, by its number."""
        return {"public": self.public.sets, **{name: each.sets for name, each in self.pbft.items()}}

    def committed(
        self, node: SimulatedNode, effect: Committed, now: Instant
    ) -> ExecutedBlock | None:
        """A node acknowledges a block; returns it if it is the first honest one of its chain to."""
        number = self._numbers[node.id]
        if number in self._byzantine:
            return None
        if node.network == "public":
            return self.public.committed(number, node, effect)
        first = self.pbft[node.network].committed(number, node, effect, now)
        if first is not None and node.network == "oracle":
            self.feeds.take(first)
        return first

    def emitted(self, node: SimulatedNode, message: Wire) -> None:
        """A node sends a message."""
        number = self._numbers[node.id]
        if number in self._byzantine:
            return
        if node.network == "public":
            self.public.emitted(message)
        else:
            self.pbft[node.network].emitted(number, message)

    def stepped(self, node: SimulatedNode) -> None:
        """A process has taken a step."""
        number = self._numbers[node.id]
        if number in self._byzantine:
            return
        if node.network == "public":
            self.public.stepped(number, node)
            if node.misbehaviours:
                self.public.accused(node)
        elif node.network in self.pbft:
            checkers = self.pbft[node.network]
            checkers.stepped(number, node)
            if node.misbehaviours:
                checkers.accused(node, self._byzantine)
