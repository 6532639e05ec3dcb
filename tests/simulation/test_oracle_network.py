"""Four oracles under faults: every interval closes with every meter's energy, every round with a value."""

from collections.abc import Callable, Iterable

import pytest
from tests.oracle_world import (
    FIRST,
    GRACE_MS,
    INTERVAL_NETWORK_MS,
    NETWORK_MS,
    ORACLES,
    PRICE,
    Device,
    OracleWorld,
    genesis,
)
from tests.stages import spread

from gridtokenx.core.codec import Wire, decode
from gridtokenx.core.keys import KeyedHashVerifier
from gridtokenx.core.machine import Committed, Machine, Reader
from gridtokenx.interchain.apps import meter_report
from gridtokenx.interchain.apps.meter_report import MeterEntry, Quality
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.interchain.calls import PacketSent
from gridtokenx.lab.sim.world import SimulatedNode, World
from gridtokenx.ledger.blocks import EventRecord
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger, Proposal
from gridtokenx.ledger.transactions import Transaction
from gridtokenx.oracle.chain.feeds import RoundClosed
from gridtokenx.oracle.chain.ledger import oracle_ledger
from gridtokenx.oracle.chain.rounds import Status
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.timing import Timing

HOUSEHOLDS = 3
INTERVALS = 6
STEP_WH = 400


class Omitting:
    """A ledger whose blocks leave out one sender: what a dishonest leader proposes from."""

    def __init__(self, ledger: Ledger, victim: bytes) -> None:
        self._ledger = ledger
        self._victim = victim

    def __getattr__(self, name: str) -> object:
        return getattr(self._ledger, name)

    def build(
        self, parent: ExecutedBlock, proposal: Proposal, candidates: Iterable[Transaction]
    ) -> tuple[ExecutedBlock, tuple[Transaction, ...]]:
        kept = [each for each in candidates if each.body.sender != self._victim]
        return self._ledger.build(parent, proposal, kept)


class OracleCluster:
    """Oracle nodes in the simulated world, and what their chain reported."""

    def __init__(self, seed: int, *, deaf: int | None = None, omits: int | None = None) -> None:
        self.deaf = deaf
        self.genesis = genesis()
        self.packets = OracleWorld()
        self.meters = [Device(f"meter {i}") for i in range(HOUSEHOLDS)]
        self.panels = [Device("panel", DeviceKind.SOLAR)]
        self.world = World(seed, KeyedHashVerifier(), start_ms=NETWORK_MS)
        self.world.on_committed = self._on_committed
        self.blocks: dict[int, ExecutedBlock] = {}
        self.entries: dict[tuple[bytes, int], MeterEntry] = {}
        self.rounds: dict[int, RoundClosed] = {}
        self.ledger = oracle_ledger(self.genesis, KeyedHashVerifier())
        for index, signer in enumerate(ORACLES):
            self.world.add(signer.public_key, self._builder(index, omitting=index == omits))

    def _builder(self, index: int, *, omitting: bool) -> Callable[[Reader], Machine]:
        def build(reader: Reader) -> Machine:
            ledger = oracle_ledger(self.genesis, KeyedHashVerifier())
            block = ledger.genesis(NETWORK_MS)
            application = Omitting(ledger, self.meters[0].device) if omitting else ledger
            return Replica.restore(
                reader,
                application,  # type: ignore[arg-type]  # it stands in for its ledger
                self.genesis.validator_set,
                ORACLES[index],
                block,
                Timing(),
            )

        return build

    def _on_committed(self, _node: SimulatedNode, effect: Committed) -> None:
        executed = effect.value
        assert isinstance(executed, ExecutedBlock)
        known = self.blocks.setdefault(effect.height, executed)
        assert known.hash == executed.hash
        if known is not executed:
            return
        assert self.ledger.check_invariants(executed.state) == []
        for raw in executed.events:
            self._note(decode(decode(raw, EventRecord).data, self.ledger.event_union))

    def _note(self, event: Wire) -> None:
        if isinstance(event, RoundClosed):
            self.rounds[event.outcome.round] = event
        if isinstance(event, PacketSent) and event.packet.port == meter_report.PORT:
            report = meter_report.decode_report(event.packet.payload)
            for entry in report.entries:
                interval = report.interval if entry.corrects is None else entry.corrects
                self.entries[entry.device, interval - FIRST] = entry

    # -- a network's life --------------------------------------------------------------------------

    def take_in(self, transaction: Transaction) -> None:
        """A message from the broker reaches every oracle that listens."""
        for index, signer in enumerate(ORACLES):
            if index != self.deaf:
                self.world.submit(signer.public_key, (transaction,))

    def at(self, after_ms: int, action: Callable[[], None]) -> None:
        self.world.at(NETWORK_MS + after_ms, action)

    def plan(self) -> None:
        """Registrations, a reading of each device at each boundary, an observation each round."""
        batch = [device.registration() for device in (*self.meters, *self.panels)]
        relayed = self.packets.relay(*self.packets.registry_packet(batch))
        self.at(500, lambda: self.take_in(relayed))
        for boundary in range(INTERVALS + 1):
            for device in (*self.meters, *self.panels):
                solar = device.kind is DeviceKind.SOLAR
                reading = device.reading(
                    boundary, 0 if solar else STEP_WH * boundary, STEP_WH * boundary // 2
                )
                when = max(4_000, boundary * INTERVAL_NETWORK_MS + 200)
                self.at(when, lambda reading=reading: self.take_in(reading))
        for round_ in range(1, INTERVALS * INTERVAL_NETWORK_MS // PRICE.round_ms):
            for oracle in range(len(ORACLES)):
                if oracle != self.deaf:
                    self._plan_observation(oracle, round_)

    def _plan_observation(self, oracle: int, round_: int) -> None:
        observation = self.packets.observe(oracle, round_, 3_900_000 + 1_000 * oracle + round_)
        key = ORACLES[oracle].public_key
        when = round_ * PRICE.round_ms + 1_500
        self.at(when, lambda: self.world.submit(key, (observation,)))

    def live(self) -> None:
        self.world.start()
        self.world.run_for(INTERVALS * INTERVAL_NETWORK_MS + GRACE_MS + 3_000)

    def check_energy(self) -> None:
        """Every interval closed at once with good energy of every device."""
        for interval in range(INTERVALS):
            for device in self.meters:
                entry = self.entries[device.device, interval]
                assert (entry.import_wh, entry.export_wh) == (STEP_WH, STEP_WH // 2)
                assert (entry.quality, entry.corrects) == (Quality.GOOD, None)
            for device in self.panels:
                assert self.entries[device.device, interval].generation_wh == STEP_WH // 2

    def check_prices(self) -> None:
        assert len(self.rounds) >= INTERVALS * INTERVAL_NETWORK_MS // PRICE.round_ms - 2
        assert {event.outcome.status for event in self.rounds.values()} == {Status.FRESH}


@pytest.mark.parametrize("deaf", spread(range(4), 2))
def test_one_oracle_that_neither_listens_nor_observes_changes_nothing(deaf: int) -> None:
    cluster = OracleCluster(seed=deaf, deaf=deaf)
    cluster.plan()
    cluster.live()
    cluster.check_energy()
    cluster.check_prices()


def test_a_leader_who_omits_a_meter_loses_its_view_before_it_matters() -> None:
    cluster = OracleCluster(seed=9, omits=0)
    cluster.plan()
    cluster.live()
    cluster.check_energy()
    views = {executed.header.round for executed in cluster.blocks.values()}
    assert len(views) > 1


def test_a_crashed_oracle_changes_nothing() -> None:
    cluster = OracleCluster(seed=4)
    cluster.plan()
    cluster.at(35_000, lambda: cluster.world.crash(ORACLES[0].public_key))
    cluster.at(70_000, lambda: cluster.world.start(ORACLES[0].public_key))
    cluster.live()
    cluster.check_energy()
