"""Relayers between the three real ledgers: what the network's own modules send arrives, and is
used.

Consensus is played by test keys (as in `interchain_chains`); everything else is real: the genesis
files of a small testnet, approvals on their way to the oracle chain, reports and attestations on
their way back, fees on the public chain.
"""

from collections.abc import Sequence
from typing import Any

import pytest
from tests.e2e.test_devices_fleet import SPECS
from tests.interchain_chains import HOUR_MS, Identity, TestChain
from tests.relayer_world import Pending, World

from gridtokenx.bridge.relayer.edge import Submit
from gridtokenx.consortium.chain import consortium_chain
from gridtokenx.consortium.participants import DeviceNoted
from gridtokenx.consortium.settlement.messages import IntervalSettled
from gridtokenx.core.codec import Wire
from gridtokenx.core.gridtime import INTERVAL_MS, interval_at
from gridtokenx.core.keys import KeyedHashSigner, KeyedHashVerifier, Signer, sha256
from gridtokenx.devices.fleet.roster import make_roster
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import calls
from gridtokenx.interchain.apps.registry import DeviceKind
from gridtokenx.interchain.apps.transfer import SendTransfer, TransferRefunded
from gridtokenx.interchain.audit import conservation_gap
from gridtokenx.interchain.clients import ClientKind
from gridtokenx.lab.manifest import Manifest
from gridtokenx.lab.testnet.genesis import make_network
from gridtokenx.ledger.readings import SubmitReading
from gridtokenx.oracle.chain.ledger import oracle_chain
from gridtokenx.public.chain import public_chain
from gridtokenx.public.rec import CertificateIssued
from gridtokenx.public.staking import GRID_DENOM

NETWORK_MS = 1_776_830_400_000
MANIFEST = Manifest()
SCALE = MANIFEST.time.scale
VOUCHER = f"public/{GRID_DENOM}"


class Names(dict[str, Signer]):
    """A key for every name that anybody asks for."""

    def __missing__(self, name: str) -> Signer:
        self[name] = KeyedHashSigner(sha256(b"real chains", name.encode()))
        return self[name]


class RealChain(TestChain):
    """A ledger of the network, its blocks certified by its validators' keys."""

    def __init__(self, name: str, built: Any, genesis: Any, names: Names) -> None:
        self.ledger = built.ledger
        self.admission = built.ledger.admission
        kind = ClientKind.GRANDPA if name == "public" else ClientKind.PBFT
        self.identity = Identity(name, kind)
        by_key = {signer.public_key: signer for signer in names.values()}
        members: ValidatorSet = genesis.validator_set
        self.sets = {members.set_id: members}
        self.signers = {members.set_id: [by_key[key] for key in members.members]}
        self.clients = genesis.clients
        self.blocks = [built.ledger.genesis(NETWORK_MS)]
        self.fee_per_weight = getattr(genesis, "fee_per_weight_ngrid", 0)

    @property
    def chain_id(self) -> bytes:
        return self.ledger.chain_id

    @property
    def facing(self) -> dict[str, tuple[str, str]]:
        return {
            client.client_id: (client.client_id, client.counterparty) for client in self.clients
        }

    def next_nonce(self, sender: bytes) -> int:
        if hasattr(self.admission, "next_nonce"):
            return self.admission.next_nonce(self.state, sender)
        nonce = 1
        while self.admission.is_used(self.state, sender, nonce):
            nonce += 1
        return nonce

    def fee(self, batch: Sequence[Wire]) -> int:
        return self.fee_per_weight * self.ledger.weight(batch)


class Network(World):
    """The small testnet: two households, one with panels."""

    def __init__(self, **options: object) -> None:
        self.names = names = Names()
        roster = make_roster(SPECS, [0] * len(SPECS))
        manifest = Manifest()
        keys = _Publics(names)
        made = make_network(manifest, keys, roster, NETWORK_MS)
        verifier = KeyedHashVerifier()
        chains: dict[str, TestChain] = {
            "oracle": RealChain("oracle", oracle_chain(made.oracle, verifier), made.oracle, names),
            "consortium": RealChain(
                "consortium", consortium_chain(made.consortium, verifier), made.consortium, names
            ),
            "public": RealChain("public", public_chain(made.public, verifier), made.public, names),
        }
        self.roster, self.sequences = roster, {}
        super().__init__(chains=chains, **options)

    def relayer(self, position: int):
        driven = super().relayer(position)
        driven.signer = self.names[f"relayer-{position}"]
        return driven

    def send(self, chain: str, who: str, *batch: Wire) -> None:
        user = type("User", (), {"signer": self.names[who], "silent": True})
        self.pools[chain].append(Pending(user, Submit(chain, 0, tuple(batch), 2**60)))

    def read_meters(self, boundary: int) -> None:
        """Every device reports its registers at an interval boundary."""
        for household in self.roster.households:
            for device in household.devices:
                if device.device_kind is DeviceKind.BATTERY:
                    continue
                steps = self.sequences[device.key] = self.sequences.get(device.key, 0) + 1
                solar = device.device_kind is DeviceKind.SOLAR
                reading = SubmitReading(
                    boundary_grid_ms=boundary * INTERVAL_MS,
                    import_wh=0 if solar else 500 * steps,
                    export_wh=800 * steps if solar else 0,
                    power_w=0,
                    charge_wh=0,
                    flags=0,
                )
                self.send("oracle", device.key, reading)


class _Publics(dict):
    """Public keys by name, over `Names`."""

    def __init__(self, names: Names) -> None:
        super().__init__()
        self._names = names

    def __missing__(self, name: str) -> bytes:
        return self._names[name].public_key


def all_events(chain: TestChain, type_: type[Wire]) -> list[Any]:
    return [event for height in range(len(chain.blocks)) for event in chain.events(type_, height)]


@pytest.fixture(scope="module")
def network() -> Network:
    """Nine intervals of a testnet with two relayers, a transfer and one that expires."""
    network = Network(relayers=2)
    interval = INTERVAL_MS // SCALE
    start = interval_at(MANIFEST.time.start_ms)
    network.run(20_000)
    bob, soon = network.names["bob"].public_key, network.chains["public"].now_ms + 6_300
    there = SendTransfer("consortium", GRID_DENOM, 5_000, bob, soon + HOUR_MS)
    late = SendTransfer("consortium", GRID_DENOM, 7_000, bob, soon)  # 300 ms after its block
    network.send("public", "alice", there, late)
    for number in range(1, 10):
        network.run(NETWORK_MS + number * interval + 1_000 - network.now)
        network.read_meters(start + number)
    network.run(60_000)
    return network


def test_approved_devices_become_known_to_the_oracle_chain(network: Network) -> None:
    noted = {event.device for event in all_events(network.chains["consortium"], DeviceNoted)}
    devices = [device for home in network.roster.households for device in home.devices]
    assert len(noted) == len(devices)


def test_reports_settle_intervals(network: Network) -> None:
    settled = all_events(network.chains["consortium"], IntervalSettled)
    assert len(settled) >= 6
    metered = [event for event in settled if event.metered]
    assert metered, settled


def test_attestations_become_certificates(network: Network) -> None:
    issued = all_events(network.chains["public"], CertificateIssued)
    assert issued
    assert len({(event.device, event.interval) for event in issued}) == len(issued)


def test_a_transfer_arrives_and_an_expired_one_comes_back(network: Network) -> None:
    public, consortium = network.chains["public"], network.chains["consortium"]
    bob = network.names["bob"].public_key
    tokens = next(module for module in consortium.ledger.modules if module.name == "tokens")
    assert tokens.balance(consortium.state, VOUCHER, bob) == 5_000
    refunds = all_events(public, TransferRefunded)
    assert [(event.amount, event.reason) for event in refunds] == [(7_000, "timeout")]


def test_relaying_wastes_nothing(network: Network) -> None:
    refused = {code: count for code, count in network.codes.items() if code != "ok"}
    assert refused in ({}, {"packet-expired": 1})  # one try, when the time left was a guess
    assert max(network.updates.values()) == 1


def test_tokens_are_conserved_at_every_block(network: Network) -> None:
    public, consortium = network.chains["public"], network.chains["consortium"]
    known = 0
    for height in range(len(public.blocks)):
        for event in public.events(calls.ClientUpdated, height):
            known = event.height if event.client_id == "consortium" else known
        home, away = public.blocks[height].state, consortium.blocks[known].state
        assert conservation_gap(home.get, away.get, "consortium", "public", GRID_DENOM) == 0
