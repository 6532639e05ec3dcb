"""All traitors of a network: which chain each is of, what it does there, and what it told its clients.

Law of the file: **faults name processes of the network, traitors know their own chain only.** So each
fault is told to its chain with nodes by their index there; victims elsewhere are nobody's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from gridtokenx.core.keys import Signer
from gridtokenx.core.machine import NodeId
from gridtokenx.host.chains import ChainFacts
from gridtokenx.lab.faults import Behave, Fault
from gridtokenx.lab.sim.pbft.behaviours import Traitors
from gridtokenx.lab.sim.pbft.chain import SharedLedger
from gridtokenx.lab.sim.pbft.traitors import Conspiracy, Puppet
from gridtokenx.lab.sim.streams import stream
from gridtokenx.lab.sim.testnet import oracles, relayers
from gridtokenx.lab.sim.testnet.meddling import MEDDLING, Meddler
from gridtokenx.lab.sim.testnet.oracles import FalseWatermarks, Lie
from gridtokenx.lab.sim.testnet.relayers import RelayerLie
from gridtokenx.lab.sim.testnet.validators import Puppet as ValidatorPuppet
from gridtokenx.lab.sim.testnet.validators import Validators
from gridtokenx.lab.sim.treason import Ring
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing
from gridtokenx.public.machine import PublicNode

Place = tuple[str, int]
"""A node by its chain and its index there."""


class NetworkTraitors:
    """Everybody who misbehaves in a run.

    Args:
        faults: of the run; those that make a traitor name processes by number.
        places: of the nodes, by number; other processes have none.
        seed: of the run.
    """

    def __init__(self, faults: Sequence[Fault], places: Mapping[int, Place], seed: int) -> None:
        self._places: Final = places
        self._seed: Final = seed
        self._faults: Final = [
            (number, fault) for number, fault in enumerate(faults) if isinstance(fault, Behave)
        ]
        self._local: Final = [
            (fault, places[fault.node][0], self._localised(fault))
            for _, fault in self._faults
            if fault.node in places
        ]
        self._chains: Final[dict[str, Traitors | Validators]] = {}
        self.meddlers: Final = [
            kind(fault, stream(seed, f"meddler {number}"))
            for number, fault in self._faults
            if (kind := _meddler(fault)) is not None
        ]
        factor = stream(seed, "oracles").choice(oracles.FACTORS)
        self._lies: Final = [
            Lie(fault, stream(seed, f"oracle {number}"), factor)
            for number, fault in self._faults
            if fault.behaviour in oracles.BEHAVIOURS
        ]
        self._relayer_lies: Final = [
            RelayerLie(fault, stream(seed, f"relayer {number}"))
            for number, fault in self._faults
            if fault.behaviour in relayers.BEHAVIOURS and fault.node not in places
        ]
        self.told: Final[Counter[str]] = Counter()
        """How often oracles and relayers lied, by behaviour."""

    @property
    def deeds(self) -> Counter[str]:
        """How often each behaviour did something."""
        found = Counter(self.told)
        for meddler in self.meddlers:
            found[meddler.fault.behaviour] += meddler.changed
        for traitors in self._chains.values():
            found += traitors.ring.deeds
        return found

    @property
    def twins(self) -> list[int]:
        """Who runs twice."""
        return list(dict.fromkeys(f.node for _, f in self._faults if f.behaviour == "twin"))

    def _localised(self, fault: Behave) -> Behave:
        chain, index = self._places[fault.node]
        near = (self._places.get(victim, ("", 0)) for victim in fault.victims)
        victims = tuple(place for of, place in near if of == chain)
        return replace(fault, node=index, victims=victims)

    # -- what a chain needs ------------------------------------------------------------------------

    def join(
        self,
        facts: ChainFacts,
        ledger: SharedLedger,
        timing: Timing | None,
        keys: Sequence[NodeId],
        signers: Sequence[Signer],
    ) -> None:
        """Bring the traitors of a chain together.

        Args:
            facts: of the chain.
            ledger: builds rival blocks.
            timing: of its engine; None for the public chain.
            keys: of all its nodes, by index, and
            signers: theirs; traitors use their own.
        """
        faults = [local for _, chain, local in self._local if chain == facts.name]
        own = {fault.node: signers[fault.node] for fault in faults}
        draw = stream(self._seed, f"traitors of {facts.name}")
        if timing is None:
            ring = Ring(facts.validators, own, facts.chain_id, draw, keys)
            self._chains[facts.name] = Validators(faults, ring)
        else:
            conspiracy = Conspiracy(
                facts.validators, own, ledger, timing.clock_bound_ms, draw, keys
            )
            self._chains[facts.name] = Traitors(faults, conspiracy)

    def replica_type(self, chain: str, index: int) -> type[Replica] | None:
        """What the machine of a traitor is inside; None for whoever is none."""
        traitors = self._chains.get(chain)
        if not isinstance(traitors, Traitors) or not traitors.tricks_of(index):
            return None
        return traitors.replica_type(index)

    def play(
        self, chain: str, index: int, machine: Replica | PublicNode, *, twin: bool = False
    ) -> Replica | PublicNode | Puppet | ValidatorPuppet:
        """A node's machine, with what it does around it."""
        traitors = self._chains.get(chain)
        if isinstance(traitors, Validators) and isinstance(machine, PublicNode):
            return traitors.play(machine, index, twin=twin)
        if isinstance(traitors, Traitors) and isinstance(machine, Replica):
            return traitors.play(machine, index, twin=twin)
        return machine

    def lies_of(self, number: int) -> list[Lie]:
        """What an oracle does to data, by its number."""
        return [lie for lie in self._lies if lie.fault.node == number]

    def relayer_lies_of(self, number: int) -> list[RelayerLie]:
        """What a relayer does, by its number."""
        return [lie for lie in self._relayer_lies if lie.fault.node == number]

    def switch(self, fault: Behave, *, active: bool) -> None:
        """Switch a behaviour on or off, wherever it acts."""
        acting: list[Meddler | Lie | RelayerLie] = [
            *self.meddlers,
            *self._lies,
            *self._relayer_lies,
        ]
        for each in acting:
            if each.fault is fault:
                each.active = active
        for known, chain, local in self._local:
            if known is fault:
                self._chains[chain].switch(local, active=active)


def _meddler(fault: Behave) -> type[Meddler] | None:
    """What it does on connections; None for nothing."""
    if fault.behaviour == "false-watermark":
        return FalseWatermarks
    return Meddler if fault.behaviour in MEDDLING else None
