"""What must hold of a network while it runs, and what it is at.

The PBFT chains are watched as a chain by itself is (`sim/pbft/checkers.py`), the public one by what its
rules say. That blocks follow by the ledgers' rules, that energy, money and packets add up across
chains, is judged when all is over, by the audit that judges real networks (`testnet/audit.py`).

==================  ============================================================================
checker             promise, beside those of the PBFT chains
==================  ============================================================================
agreement           no two validators finalise different public blocks at one height
durability          what a node acknowledged is on its disk, after any crash
contradiction       no honest validator votes or authors twice for one thing
survival            no process ends by itself, unless its disk fails
audit: ...          the invariants of a real network's summary
==================  ============================================================================
"""

from collections.abc import Mapping
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import Verifier
from gridtokenx.core.machine import Committed, Instant, NodeId
from gridtokenx.host.chains import ChainFacts
from gridtokenx.lab.sim.outcome import Violation
from gridtokenx.lab.sim.pbft.checkers import Checkers
from gridtokenx.lab.sim.world import SimulatedNode
from gridtokenx.ledger.records import final_height
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.public.grandpa.messages import Votes
from gridtokenx.public.messages import NewBlock
from gridtokenx.public.slots import read_claim


class PbftCheckers(Checkers):
    """As of a chain by itself, but for execution: the audit executes every block once more."""

    def _execute(self, executed: ExecutedBlock) -> None:
        if executed.header.parent != self.newest.hash:
            raise Violation("validity", f"height {executed.height} does not follow from its parent")
        self.newest = executed


class PublicCheckers:
    """All checkers of the public chain.

    Args:
        genesis: block 0.
        dishonest: indices of validators that may contradict themselves; honest ones pass that on.
    """

    def __init__(self, genesis: ExecutedBlock, dishonest: frozenset[int]) -> None:
        self.newest = genesis
        self._dishonest: Final = dishonest
        self._hashes: Final[dict[int, bytes]] = {0: genesis.hash}
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
                f"{index} finalises {executed.hash.hex()[:12]} at public height"
                f" {executed.height}, where {known.hex()[:12]} is final",
            )
        self._acknowledged[index] = executed.height
        self._check_durable(index, node)
        if known is not None:
            return None
        self._hashes[executed.height] = executed.hash
        self.newest = executed
        return executed

    def emitted(self, message: Wire) -> None:
        """A validator sends a message; what it passes on was said by another honest one."""
        match message:
            case Votes(votes):
                for vote in votes:
                    if vote.authority in self._dishonest:
                        continue
                    subject = (vote.set_id, vote.authority, vote.round, vote.stage)
                    if self._said.setdefault(subject, vote.target_hash) != vote.target_hash:
                        raise Violation("contradiction", f"(set, voter, round, stage) {subject}")
            case NewBlock(sealed):
                header = sealed.block.header
                place = (header.set_id, read_claim(header).authority, header.round)
                if self._authored.setdefault(place, header.hash) != header.hash:
                    raise Violation("contradiction", f"two blocks of (set, author, slot) {place}")

    def stepped(self, index: int, node: SimulatedNode) -> None:
        """A validator has taken a step."""
        if self._lives.get(index) != node.life:
            self._lives[index] = node.life
            self._check_durable(index, node)

    def _check_durable(self, index: int, node: SimulatedNode) -> None:
        stored, promised = final_height(node.store) or 0, self._acknowledged.get(index, 0)
        if stored < promised:
            raise Violation(
                "durability", f"{index} acknowledged height {promised}; its disk ends at {stored}"
            )


class NetworkCheckers:
    """The checkers of all three chains.

    Args:
        facts: by chain.
        numbers: of every process, by its node id.
        byzantine: numbers of those that are not honest; nothing is checked of what they say.
        verifier: of signatures.
    """

    def __init__(
        self,
        facts: Mapping[str, ChainFacts],
        numbers: Mapping[NodeId, int],
        byzantine: frozenset[int],
        verifier: Verifier,
    ) -> None:
        self._numbers: Final = numbers
        self._byzantine: Final = byzantine
        members = facts["public"].validators.members
        dishonest = (seat for seat, key in enumerate(members) if numbers[key] in byzantine)
        self.public: Final = PublicCheckers(facts["public"].genesis_block, frozenset(dishonest))
        self.pbft: Final = {
            name: PbftCheckers(
                facts[name].ledger,
                facts[name].genesis_block,
                facts[name].validators,
                verifier,
                numbers,
            )
            for name in ("consortium", "oracle")
        }

    def heights(self) -> dict[str, int]:
        """The highest final height of each chain."""
        found = {name: each.height for name, each in self.pbft.items()}
        return {"public": self.public.newest.height, **found}

    def committed(
        self, node: SimulatedNode, effect: Committed, now: Instant
    ) -> ExecutedBlock | None:
        """A node acknowledges a block; returns it if it is the first honest one of its chain to."""
        number = self._numbers[node.id]
        if number in self._byzantine:
            return None
        if node.network == "public":
            return self.public.committed(number, node, effect)
        return self.pbft[node.network].committed(number, node, effect, now)

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
        elif node.network in self.pbft:
            checkers = self.pbft[node.network]
            checkers.stepped(number, node)
            if node.misbehaviours:
                checkers.accused(node, self._byzantine)
