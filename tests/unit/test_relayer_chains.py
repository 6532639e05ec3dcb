"""What a relayer makes of genesis files, of verified blocks, and of handovers that nodes show."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.e2e.relayer_network import Network
from tests.interchain_chains import HOUR_MS, Poke, TestChain, seed_signers, three_chains

from gridtokenx.bridge.process.chains import relayed, relaying_fee
from gridtokenx.bridge.process.follower import FollowedChain
from gridtokenx.bridge.process.run import RelayerSettings, run_relayer
from gridtokenx.bridge.relayer.book import Facing
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import KeyedHashVerifier
from gridtokenx.host.chains import CHAINS, read_chain
from gridtokenx.host.client import ClockNonces, StrictNonces
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.follow import FinalBlock, Trust
from gridtokenx.host.follow_messages import Handover
from gridtokenx.host.questions import Lie


class Nodes:
    """A node set with one node, which answers as told."""

    def __init__(self, answers: dict[int, Any]) -> None:
        self.answers = answers
        self.asked: list[int] = []

    async def ask(self, question, believe):
        self.asked.append(question.set_id)
        answer = self.answers.get(question.set_id)
        if answer is None:
            raise RemoteFault("no-answer")
        return believe(answer)


class FakeFollower:
    def __init__(self, chain: TestChain, answers: dict[int, Any]) -> None:
        self.trust = Trust(chain.chain_id, 0, chain.blocks[0].hash, chain.sets[0])
        self.nodes = Nodes(answers)

    def on_final(self, listener) -> None:
        self.listener = listener


def followed(chain: TestChain, answers: dict[int, Any] | None = None) -> Any:
    follower = FakeFollower(chain, answers or {})
    verifier, clock = KeyedHashVerifier(), NetworkClock()
    return follower, FollowedChain(follower, None, chain.sets[0], verifier, clock, 0)


def final(chain: TestChain, height: int, *, proven: bool = True) -> FinalBlock:
    block = chain.blocks[height]
    proof = chain.certified(height).proof if proven else None
    return FinalBlock(block.header, block.events, proof, None)


async def test_heads_are_told_once_and_say_whether_interchain_was_touched() -> None:
    chain = three_chains()["oracle"]
    follower, relayed_chain = followed(chain)
    for _ in range(2):
        chain.block()
    chain.block(Poke("consortium", b"x", chain.now_ms + HOUR_MS))
    for _ in range(2):
        chain.block()
    follower.listener(final(chain, 1))
    assert (await relayed_chain.next_head()).touched  # at the first, everything may have changed
    follower.listener(final(chain, 2))
    assert not (await relayed_chain.next_head()).touched
    follower.listener(final(chain, 3, proven=False))
    follower.listener(final(chain, 4))
    follower.listener(final(chain, 5))
    head = await relayed_chain.next_head()
    assert (head.certified.header.height, head.touched) == (5, True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await relayed_chain.next_head()


def handing_over() -> tuple[TestChain, dict[int, Handover]]:
    chain = three_chains()["consortium"]
    answers = {}
    for number in (1, 2):
        chain.hand_over(seed_signers(f"set {number}"))
        certified = chain.certified()
        answers[number - 1] = Handover(certified.header, certified.proof, chain.sets[number])
    return chain, answers


async def test_handovers_are_believed_set_by_set() -> None:
    chain, answers = handing_over()
    follower, relayed_chain = followed(chain, answers)
    certified, following = await relayed_chain.handover(1)
    assert (certified.header.height, following) == (2, chain.sets[2])
    assert follower.nodes.asked == [0, 1]
    assert (await relayed_chain.handover(0))[1] == chain.sets[1]
    assert follower.nodes.asked == [0, 1]
    with pytest.raises(RemoteFault):
        await relayed_chain.handover(2)


async def test_a_lie_about_a_handover_is_not_believed() -> None:
    chain, answers = handing_over()
    true = answers[0]
    stranger = structs.replace(chain.sets[1], members=chain.sets[2].members)
    weak = chain.certify(true.header, chain.signers[0][:2]).proof
    lies = [
        structs.replace(true, next_set=stranger),
        structs.replace(true, next_set=chain.sets[2]),
        structs.replace(true, proof=weak),
        structs.replace(true, header=structs.replace(true.header, chain_id=bytes(32))),
        answers[1],
        chain.certified(1),
    ]
    for lie in lies:
        _, relayed_chain = followed(chain, {0: lie})
        with pytest.raises(Lie):
            await relayed_chain.handover(0)


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(tmp_path)


def test_routes_follow_from_the_genesis_files(network: Network) -> None:
    facts = [read_chain(name, network.path / f"{name}.json") for name in CHAINS]
    specs = {spec.name: spec for spec in relayed(facts)}
    assert specs["oracle"].clients == {
        "consortium": Facing("consortium", "oracle"),
        "public": Facing("public", "oracle"),
    }
    assert relaying_fee(facts[0]) == facts[0].fee_per_weight > 0
    assert relaying_fee(facts[1]) == relaying_fee(facts[2]) == 0
    nonces = [each.nonces(None, bytes(32), NetworkClock()) for each in facts]
    assert [type(each) for each in nonces] == [StrictNonces, StrictNonces, ClockNonces]


def test_files_of_different_networks_are_refused(tmp_path: Path) -> None:
    networks = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        networks.append(Network(tmp_path / name))
    facts = [read_chain(name, networks[name == "oracle"].path / f"{name}.json") for name in CHAINS]
    with pytest.raises(LocalFault, match="one network"):
        relayed(facts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position": 2}, "position = 2"),
        ({"oracle": "no nodes"}, "oracle.nodes is empty"),
        ({"consortium": "no certificate"}, "consortium.certificate"),
        ({"key": "other"}, "other"),
    ],
)
async def test_settings_that_cannot_work_are_refused_in_one_line(
    network: Network, change: dict[str, Any], words: str
) -> None:
    links = {name: network.link(name, "relayer-0") for name in CHAINS}
    if change.get("oracle"):
        links["oracle"] = structs.replace(links["oracle"], nodes=())
    if change.get("consortium"):
        links["consortium"] = structs.replace(links["consortium"], certificate=None)
    plain = {key: value for key, value in change.items() if key not in links}
    fields = {"keys": network.keys("relayer-0"), "key": "identity", "relayers": 2} | plain
    with pytest.raises(LocalFault, match=words) as refusal:
        await run_relayer(RelayerSettings(**fields, **links))
    assert "\n" not in str(refusal.value)
