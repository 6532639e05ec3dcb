"""The network of `./scripts/up` in a simulated world, from the same manifest.

Law of the file: **manifest and seed determine everything.** The manifest says what the network is
(its own seed: weather and households); the seed draws delays, disks and what faults leave to chance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from gridtokenx.core.keys import KeyedHashSigner, KeyedHashVerifier, sha256
from gridtokenx.core.machine import Committed, Machine, NodeId, Reader
from gridtokenx.devices.fleet.profiles import make_profiles, plan_neighbourhood
from gridtokenx.devices.fleet.roster import Roster, make_roster
from gridtokenx.devices.models.forecast import make_forecast
from gridtokenx.devices.models.profiles import Profile, pack_profiles
from gridtokenx.host.chains import CHAINS, ChainFacts, put_together
from gridtokenx.lab.faults import Fault
from gridtokenx.lab.manifest import Manifest
from gridtokenx.lab.sim.network import LinkProfile
from gridtokenx.lab.sim.pbft.chain import SharedLedger
from gridtokenx.lab.sim.testnet.broker import SimulatedBroker, broker_for
from gridtokenx.lab.sim.testnet.naming import AGENTS, BROKER, DEVICES, MARKET_DATA, node_names
from gridtokenx.lab.sim.testnet.nodes import ServingNode, SimulatedChain
from gridtokenx.lab.sim.testnet.processes import Idle, Life, Process, Wires
from gridtokenx.lab.sim.testnet.treason import NetworkTraitors, Place
from gridtokenx.lab.sim.testnet.variants import network_variant
from gridtokenx.lab.sim.testnet.workers import (
    Parts,
    Records,
    SimulatedSource,
    begin_agents,
    begin_devices,
    begin_market_data,
    begin_relayer,
)
from gridtokenx.lab.sim.world import START_MS, SimulatedNode, World
from gridtokenx.lab.testnet.genesis import make_network
from gridtokenx.lab.testnet.initialise import DAY_ERROR_PPM, INTERVAL_ERROR_PPM
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.oracle.feeds.market_data import ENERGY_PRICE
from gridtokenx.pbft.timing import Timing


def signer_of(name: str) -> KeyedHashSigner:
    """The key that has a name; the same in every run."""
    return KeyedHashSigner(sha256(b"gtx sim: testnet", name.encode()))


class _PublicKeys(dict[str, bytes]):
    """A public key for every name that a genesis asks for."""

    def __missing__(self, name: str) -> bytes:
        return signer_of(name).public_key


class NetworkWorld(World):
    """A world that tells processes of their end."""

    processes: dict[NodeId, Process]

    def crash(self, node: NodeId, keep: int | None = None, *, torn: bool = False) -> None:
        """See `World.crash`."""
        super().crash(node, keep, torn=torn)
        self.processes[node].ended()


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Households and their weather: what `gtx testnet init` makes once."""

    roster: Roster
    profiles: tuple[Profile, ...]
    forecasts: tuple[Profile, ...]
    profiles_hash: bytes
    """Of the packed profiles; part of a run's identity, since floats made them."""


def make_neighbourhood(manifest: Manifest) -> Neighbourhood:
    """As `testnet.initialise` makes it."""
    devices = manifest.devices
    plan = plan_neighbourhood(manifest.seed, devices.households, devices.solar, devices.batteries)
    day = datetime.fromisoformat(manifest.time.start).date()
    profiles = make_profiles(manifest.seed, day, devices.profile_days, plan)
    seed = manifest.seed.to_bytes(8, "big")
    forecasts = tuple(
        make_forecast(profile, seed, index, DAY_ERROR_PPM, INTERVAL_ERROR_PPM)
        for index, profile in enumerate(profiles)
    )
    packed = pack_profiles(profiles[0].start_grid_ms, profiles[0].step_ms, profiles)
    return Neighbourhood(
        make_roster(plan.specs, [0] * devices.households), profiles, forecasts, sha256(packed)
    )


class Testnet:
    """All processes of a network; nobody is started yet.

    Args:
        manifest: what the network is.
        seed: of the world's draws.
        profile: how links behave by default.
        disk_ms: longest time until a batch is durable.
        neighbourhood: made from the manifest if None.
        variant: how nodes are broken on purpose; empty: they are not.
        observers: so many nodes of each PBFT chain have no seat at first.
        faults: of the run: who is a traitor, and how.
        draws: the run's seed, from which traitors draw.
    """

    def __init__(
        self,
        manifest: Manifest,
        seed: int,
        *,
        profile: LinkProfile | None = None,
        disk_ms: int = 2,
        neighbourhood: Neighbourhood | None = None,
        variant: str = "",
        observers: int = 0,
        faults: Sequence[Fault] = (),
        draws: int = 0,
    ) -> None:
        self.manifest: Final = manifest
        self._variant: Final = network_variant(variant)
        self._observers: Final = observers
        self.neighbourhood: Final = neighbourhood or make_neighbourhood(manifest)
        self.verifier: Final = KeyedHashVerifier()
        self.facts: Final = self._put_together()
        self.world: Final = NetworkWorld(
            seed,
            self.verifier,
            profile=profile or LinkProfile((1, 5)),
            disk_ms=(0, disk_ms),
            start_ms=START_MS,
            trace=True,
        )
        self.wires: Final = Wires(self.world, START_MS)
        self.world.processes = self.wires.processes
        self.chains: Final = {name: self._chain(name) for name in CHAINS}
        self.traitors: Final = NetworkTraitors(faults, dict(enumerate(self._places())), draws)
        self.processes: Final[list[Process]] = []
        self.twins: Final[dict[int, Process]] = {}
        """By the number of the process that has the same key."""
        self.by_name: Final[dict[str, Process]] = {}
        self.nodes: Final[dict[str, list[Process]]] = {name: [] for name in CHAINS}
        self._numbers: Final[dict[NodeId, int]] = {}
        self._serving: Final[dict[NodeId, ServingNode]] = {}
        self._journals: Final = {
            entry.name: Records() for entry in self.neighbourhood.roster.households
        }
        self.on_committed: Callable[[SimulatedNode, Committed], None] | None = None
        """Hears of every block that a node acknowledges."""
        self.parts: Final = Parts(
            manifest,
            self.facts,
            {name: self._keys_of(name) for name in CHAINS},
            signer_of,
            self.verifier,
            self.neighbourhood.roster,
            self.neighbourhood.profiles,
            self.neighbourhood.forecasts,
        )
        self._add_all()
        self.world.on_committed = self._committed

    # -- building ----------------------------------------------------------------------------------

    def _put_together(self) -> dict[str, ChainFacts]:
        made = make_network(self.manifest, _PublicKeys(), self.neighbourhood.roster, START_MS)
        facts = {
            name: put_together(name, genesis, self.verifier)
            for name, genesis in made.by_chain().items()
        }
        self._variant.spoil(facts["oracle"].ledger)
        return facts

    def _chain(self, name: str) -> SimulatedChain:
        block_times_ms = {
            "consortium": self.manifest.consortium.block_time_ms,
            "oracle": self.manifest.oracle.block_time_ms,
        }
        timing = Timing(block_time_ms=block_times_ms[name]) if name in block_times_ms else None
        facts = self.facts[name]
        return SimulatedChain(
            facts, SharedLedger(facts.ledger), timing, self.verifier, self._variant
        )

    def node_names(self, chain: str) -> list[str]:
        """The nodes of a chain, those without a seat too."""
        return node_names(self.manifest, chain, self._observers)

    def _keys_of(self, chain: str) -> Sequence[NodeId]:
        return [signer_of(name).public_key for name in self.node_names(chain)]

    def _places(self) -> Iterator[Place]:
        """Of the nodes, which come first among processes."""
        for chain in CHAINS:
            yield from ((chain, index) for index in range(len(self._keys_of(chain))))

    def _join_traitors(self) -> None:
        for name, chain in self.chains.items():
            signers = [signer_of(each) for each in self.node_names(name)]
            keys = self._keys_of(name)
            self.traitors.join(chain.facts, chain.ledger, chain.timing, keys, signers)

    def _add_all(self) -> None:
        self._join_traitors()
        for chain in CHAINS:
            for index, name in enumerate(self.node_names(chain)):
                begin = partial(self._begin_node, chain, index)
                self.nodes[chain].append(self._add(name, begin, network=chain))
        parts = self.parts
        for position in range(self.manifest.bridge.relayers):
            lies = self.traitors.relayer_lies_of(len(self.processes))
            told = self.traitors.told if lies else None
            begin_one = partial(begin_relayer, parts, position=position, lies=lies, told=told)
            self._worker(f"relayer-{position}", begin_one)
        self._worker(BROKER, self._begin_broker)
        self._worker(MARKET_DATA, partial(begin_market_data, parts))
        broker = signer_of(BROKER).public_key
        self._worker(DEVICES, partial(begin_devices, parts, journals=self._journals, broker=broker))
        self._worker(AGENTS, partial(begin_agents, parts))
        for number in self.traitors.twins:
            self._add_twin(number)

    def _worker(self, name: str, begin: Callable[[Life], Machine]) -> None:
        self._add(name, lambda life, _reader: begin(life), network="")

    def _add(self, name: str, begin: Callable[[Life, Reader], Machine], *, network: str) -> Process:
        key = signer_of(name).public_key
        process = Process(self.wires, name, key, begin, network or name)
        self._numbers[key] = len(self.processes)
        self.processes.append(process)
        self.by_name[name] = process
        return process

    def _add_twin(self, number: int) -> None:
        """A second process with the key of another: peers hear both, clients dial the first."""
        first, (chain, index) = self.processes[number], list(self._places())[number]

        def begin(life: Life, reader: Reader) -> Machine:
            del life  # it serves nobody
            machine = self.chains[chain].restore(reader, signer_of(first.name))
            return self.traitors.play(chain, index, machine, twin=True)

        place = sha256(b"gtx sim: twin", first.id)
        name = f"{first.name}, the twin"
        self.twins[number] = Process(self.wires, name, place, begin, chain, first.id)

    def _begin_node(self, chain: str, index: int, life: Life, reader: Reader) -> Machine:
        signer, simulated = signer_of(life.name), self.chains[chain]
        traitor = self.traitors.replica_type(chain, index)
        machine = simulated.restore(reader, signer, traitor)
        serving = ServingNode(life, simulated, machine, reader, signer, self.parts.count(life.name))
        self._serving[life.node.id] = serving
        if chain == "oracle":
            market_data = signer_of(MARKET_DATA).public_key
            source = SimulatedSource(self.parts, life, market_data, index)
            broker = broker_for(life, signer_of(BROKER).public_key)
            lies = self.traitors.lies_of(self._numbers[life.node.id])
            serving.take_readings(broker, {ENERGY_PRICE: source}, lies, self.traitors.told)
        return self.traitors.play(chain, index, machine)

    def _begin_broker(self, life: Life) -> Machine:
        SimulatedBroker(life)
        return Idle()

    # -- running -----------------------------------------------------------------------------------

    def _committed(self, node: SimulatedNode, effect: Committed) -> None:
        executed = effect.value
        assert isinstance(executed, ExecutedBlock), "chains commit executed blocks"
        if node.id in self._serving:
            self._serving[node.id].committed(executed)
        if self.on_committed is not None:
            self.on_committed(node, effect)

    def start(self) -> None:
        """Start every process; twins come when their faults do."""
        self.world.start(*(process.id for process in self.processes))

    def trace_digest(self) -> str:
        """Hash of everything that any machine was told, any connection carried, and the profiles."""
        parts = (self.world.trace_digest(), self.wires.trace_digest())
        return sha256(self.neighbourhood.profiles_hash, *(part.encode() for part in parts)).hex()

    def close(self) -> None:
        """Let every coroutine end, so that nothing is left behind."""
        everybody = (*self.processes, *self.twins.values())
        lives = [life for process in everybody for life in process.lives]
        for life in lives:
            life.bury()
