"""Checkpoints: their form, and nodes that insist on one."""

import re

import pytest
from tests.public_ledger import key
from tests.simulation.era_network import EraNetwork

from gridtokenx.core.errors import LocalFault
from gridtokenx.public.checkpoint import Checkpoint

HASH = bytes(range(32))


def test_text_and_back() -> None:
    checkpoint = Checkpoint(1_234, HASH)
    assert Checkpoint.parse(f" {checkpoint}\n") == checkpoint


@pytest.mark.parametrize("text", ["", "12", "12:", "x:" + HASH.hex(), "-1:" + HASH.hex(), "1:00"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(LocalFault, match="write HEIGHT:HASH"):
        Checkpoint.parse(text)


def test_only_its_own_height_matters() -> None:
    Checkpoint(5, HASH).check(5, HASH)
    Checkpoint(5, HASH).check(6, bytes(32))
    with pytest.raises(LocalFault) as refused:
        Checkpoint(5, HASH).check(5, bytes(32))
    assert HASH.hex() in str(refused.value)
    assert bytes(32).hex() in str(refused.value)
    assert "peers" in str(refused.value)


def grown(blocks: int) -> EraNetwork:
    network = EraNetwork(11)
    network.start()
    assert network.run_to(blocks, 4 * blocks)
    return network


def test_a_newcomer_syncs_to_its_checkpoint_and_then_votes() -> None:
    network = grown(6)
    network.checkpoint = Checkpoint(5, network.chain[5].hash)
    ann = network.world.nodes[network.id("ann")]
    network.crash("ann")
    ann.store.wipe()
    network.start("ann")
    assert network.node("ann").awaits == network.checkpoint
    network.settle()
    assert network.node("ann").awaits is None
    said = [log.event for _, log in ann.logs]
    assert said.index("syncing to checkpoint") < said.index("checkpoint reached")
    assert any(slot > 0 for author, slot in network.authored if author == network.id("ann"))


def test_another_history_is_refused_before_it_is_final_here() -> None:
    network = grown(6)
    network.checkpoint = Checkpoint(5, HASH)
    network.crash("eve")
    network.world.nodes[network.id("eve")].store.wipe()
    network.start("eve")
    with pytest.raises(LocalFault, match=re.escape(network.chain[5].hash.hex())):
        network.run_slots(20)
    assert network.final("eve") < 5


def test_a_store_with_another_history_is_refused_at_start() -> None:
    network = grown(6)
    network.crash("eve")
    network.checkpoint = Checkpoint(5, HASH)
    with pytest.raises(LocalFault, match="checkpoint: block 5 of this chain"):
        network.start("eve")


def test_below_its_checkpoint_a_validator_keeps_silent() -> None:
    network = EraNetwork(12)
    network.checkpoint = Checkpoint(50, HASH)
    network.start("ann")
    network.checkpoint = None
    network.start()
    network.run_slots(4)
    ann = key("ann session")
    assert not [slot for author, slot in network.authored if author == ann]
    assert not [place for place in network.said if place[0] == ann]
    assert network.final("ann") > 0, "it follows"
