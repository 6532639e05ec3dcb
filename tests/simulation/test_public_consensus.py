"""The public chain under forks, lagging votes, partitions, crashes and liars.

Checked all the time (`public_network.py`): no two final blocks at one height; no honest validator
ever contradicts itself, in any of its lives. Checked at the end: everybody goes on, together, and
every disk holds a chain whose justifications convince a stranger.
"""

import itertools
import random
from collections import Counter

import pytest
from tests.simulation.public_network import (
    SLOT_MS,
    TOKENS,
    TREASURY,
    DoubleAuthor,
    DoubleVoter,
    Liar,
    ManyAuthor,
    PublicNetwork,
    Silent,
    Wrap,
    transfer,
)
from tests.stages import FULL, spread

from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier, sha256
from gridtokenx.lab.sim.network import DeliverAfter, Drop, Envelope, LinkProfile, Verdict
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.runtime import ExecutedBlock
from gridtokenx.ledger.state import State
from gridtokenx.public.grandpa.messages import CatchUp, Votes
from gridtokenx.public.machine import NodeKeys
from gridtokenx.public.messages import FinalBlocks
from gridtokenx.public.slots import Ed25519Vrf, Ed25519VrfVerifier

ROUGH = LinkProfile(delay_ms=(5, 400), loss=0.1, duplicate=0.1, reorder=0.3)


def test_four_validators_finalise_every_block_soon() -> None:
    net = PublicNetwork()
    net.world.start()
    assert net.run_to(20, slots=24)
    net.run_slots(1)
    lags = [net.node(i).best.height - net.node(i).head.height for i in range(4)]
    assert max(lags) <= 2
    assert net.rejections() == {}
    net.check_disks()


def test_at_most_one_round_per_new_best_block() -> None:
    net = PublicNetwork()
    net.world.start()
    net.run_slots(40)
    bests = {block for (_, _), block in net.authored.items()}
    assert net.node(0).head.height >= 30
    assert net.node(0).round <= len(bests) + 2


def test_votes_are_not_sent_to_those_who_hold_them() -> None:
    net = PublicNetwork()
    sent: list[tuple[bytes, bytes]] = []

    def count(envelope: Envelope) -> Verdict | None:
        if isinstance(envelope.message, Votes):
            sent.extend((envelope.receiver, vote.signature) for vote in envelope.message.votes)
        return None

    net.world.network.rules.append(count)
    net.world.start()
    net.run_slots(20)
    assert len(sent) < 1.05 * len(set(sent))


@pytest.mark.parametrize("seed", spread(range(6), 2))
def test_rough_links(seed: int) -> None:
    net = PublicNetwork(seed=seed, profile=ROUGH)
    net.world.start()
    assert net.run_to(15, slots=45)
    net.settle()


def test_the_same_seed_is_the_same_run() -> None:
    def run() -> str:
        net = PublicNetwork(seed=5, profile=ROUGH, trace=True)
        net.world.start()
        net.run_slots(10)
        return net.world.trace_digest()

    assert run() == run()


@pytest.mark.parametrize("seed", spread(range(3), 1))
def test_halves_make_forks_and_no_finality_and_converge_after_healing(seed: int) -> None:
    net = PublicNetwork(seed=seed)
    net.world.start()
    assert net.run_to(5, slots=10)
    net.partition([0, 1], [2, 3])
    net.run_slots(3)  # votes under way may still finalise something
    frozen = net.highest()
    net.run_slots(15)
    assert net.highest() == frozen
    assert net.node(0).best.hash != net.node(2).best.hash
    assert min(net.node(i).best.height for i in range(4)) > frozen + 4
    net.settle(further=15)


def test_a_majority_goes_on_and_the_cut_off_validator_catches_up() -> None:
    net = PublicNetwork()
    net.world.start()
    assert net.run_to(5, slots=10)
    net.partition([0, 1, 2], [3])
    before = net.final(3)
    assert net.run_to(25, slots=45, among=[0, 1, 2])
    assert net.final(3) <= before + 2
    net.settle()
    others = max(net.node(i).round for i in (0, 1, 2))
    assert net.node(3).round >= others - 1


def test_a_killed_validator_restarts_catches_up_and_votes_again() -> None:
    net = PublicNetwork(seed=3)
    net.world.start()
    assert net.run_to(5, slots=10)
    net.world.crash(net.ids[1])
    assert net.run_to(20, slots=40, among=[0, 2, 3])
    rounds_before = max(round_ for index, round_, _ in net.said if index == 1)
    net.settle()
    net.run_slots(3)
    assert max(round_ for index, round_, _ in net.said if index == 1) > rounds_before + 5


def test_two_dead_of_four_stop_finality_and_both_return() -> None:
    net = PublicNetwork(seed=4)
    net.world.start()
    assert net.run_to(4, slots=10)
    for victim in (0, 2):
        net.world.crash(net.ids[victim])
    net.run_slots(12)
    assert net.highest() <= 8
    net.settle(further=10)


@pytest.mark.parametrize("seed", spread(range(8), 2))
def test_kills_at_random_moments(seed: int) -> None:
    """Any validators die at any moment with any prefix of their unsynced batches; all return."""
    net = PublicNetwork(seed=seed, profile=LinkProfile(delay_ms=(5, 150), loss=0.03))
    draw = random.Random(seed)
    net.world.start()
    for _ in range(25):
        net.world.run_for(draw.randint(50, 2 * SLOT_MS))
        alive = [i for i in range(4) if net.world.nodes[net.ids[i]].alive]
        down = [i for i in range(4) if i not in alive]
        if down and draw.random() < 0.6:
            net.world.start(net.ids[draw.choice(down)])
        elif alive:
            net.world.crash(net.ids[draw.choice(alive)])
    net.settle()


def test_all_validators_die_at_once_and_go_on() -> None:
    net = PublicNetwork(seed=9)
    net.world.start()
    assert net.run_to(6, slots=12)
    for id_ in net.ids:
        net.world.crash(id_)
    net.settle()


LIARS = (Silent, DoubleVoter, DoubleAuthor, ManyAuthor, Liar)


@pytest.mark.parametrize(
    ("seed", "size", "liar"), spread([*itertools.product(range(3), ((4, 1), (7, 2)), LIARS)], 6)
)
def test_up_to_a_third_may_be_byzantine(seed: int, size: tuple[int, int], liar: Wrap) -> None:
    n, bad = size
    profile = LinkProfile(delay_ms=(5, 120), loss=0.02, reorder=0.1)
    net = PublicNetwork(n, seed, profile=profile, wrap=dict.fromkeys(range(bad), liar))
    net.world.start()
    assert net.run_to(12, slots=60, among=net.honest())
    net.settle()


def test_double_votes_and_double_blocks_are_reported_with_evidence() -> None:
    net = PublicNetwork(7, 2, wrap={0: DoubleVoter, 1: DoubleAuthor})
    net.world.start()
    assert net.run_to(15, slots=60, among=net.honest())
    assert net.misbehaviours("grandpa-equivocation") == {net.ids[0]}
    assert net.misbehaviours("slot-equivocation") == {net.ids[1]}


def test_floods_of_blocks_for_one_slot_are_mostly_left_unexecuted() -> None:
    net = PublicNetwork(4, 3, wrap={0: ManyAuthor})
    execute, executed = net.ledger.execute, Counter[int]()

    def counted(parent: ExecutedBlock, block: Block) -> ExecutedBlock:
        executed[block.header.round] += 1
        return execute(parent, block)

    net.ledger.execute = counted  # type: ignore[method-assign]  # to look on
    net.world.start()
    assert net.run_to(15, slots=60, among=net.honest())
    assert net.misbehaviours("slot-equivocation") == {net.ids[0]}
    reported = [len(net.world.nodes[net.ids[i]].misbehaviours) for i in net.honest()]
    flooded = sum(count > 4 for count in executed.values())
    assert 0 < max(reported) <= flooded, "once a slot, not once a block"
    assert max(executed.values()) < 20, "by four nodes together; with fifteen blocks to a slot"


def test_lagging_votes() -> None:
    """One validator's votes take longer than a whole round to everybody."""
    net = PublicNetwork(seed=6)

    def lag(envelope: Envelope) -> Verdict | None:
        if envelope.sender == net.ids[2] and isinstance(envelope.message, Votes):
            return DeliverAfter(1_500)
        return None

    net.world.network.rules.append(lag)
    net.world.start()
    assert net.run_to(15, slots=25)
    net.settle()


def test_a_voter_that_is_rounds_behind_catches_up() -> None:
    """It hears no votes for long; blocks and justifications reach it, rounds do not."""
    net = PublicNetwork(seed=7)
    deaf = True

    def mute(envelope: Envelope) -> Verdict | None:
        is_vote = isinstance(envelope.message, (Votes, CatchUp))
        return Drop() if deaf and is_vote and envelope.receiver == net.ids[3] else None

    net.world.network.rules.append(mute)
    net.world.start()
    assert net.run_to(15, slots=25)
    assert net.node(3).round < net.node(0).round - 5
    assert net.final(3) >= 15, "justifications alone keep it up to date"
    deaf = False
    net.settle()
    assert net.node(3).round >= net.node(0).round - 1


def test_a_validator_that_starts_late_fetches_the_chain_in_ranges() -> None:
    net = PublicNetwork(seed=8)
    chunks: list[int] = []

    def count(envelope: Envelope) -> Verdict | None:
        if isinstance(envelope.message, FinalBlocks) and envelope.receiver == net.ids[3]:
            chunks.append(len(envelope.message.blocks))
        return None

    net.world.network.rules.append(count)
    net.world.start(*net.ids[:3])
    blocks = 300 if FULL else 100
    assert net.run_to(blocks, slots=blocks * 7 // 5, among=[0, 1, 2])
    net.settle(further=3, slots=12)
    assert sum(chunks) >= blocks * 5 // 6
    assert len(chunks) < 12


def everything_at_once(seed: int, n: int = 4) -> None:
    """Liars, loss, partitions and kills, as the seed draws them; then all must go on."""
    draw = random.Random(seed)
    faulty = draw.sample(range(n), draw.randint(0, (n - 1) // 3))
    net = PublicNetwork(
        n,
        seed,
        wrap={
            index: draw.choice([Silent, DoubleVoter, DoubleAuthor, ManyAuthor, Liar])
            for index in faulty
        },
        profile=LinkProfile(
            delay_ms=(5, draw.choice([50, 200, 800])),
            loss=draw.choice([0, 0.05, 0.2]),
            duplicate=0.05,
            reorder=0.2,
        ),
    )
    net.world.start()
    for _ in range(30):
        net.world.run_for(draw.randint(50, 3 * SLOT_MS))
        _disturb(net, draw)
    net.world.network.profile = LinkProfile(delay_ms=(5, 100))
    net.settle(slots=60)


def _disturb(net: PublicNetwork, draw: random.Random) -> None:
    event = draw.random()
    alive = net.up()
    down = [i for i in net.honest() if i not in alive]
    if event < 0.3 and down:
        net.world.start(net.ids[draw.choice(down)])
    elif event < 0.5 and alive:
        net.world.crash(net.ids[draw.choice(alive)])
    elif event < 0.7:
        order = draw.sample(range(net.n), net.n)
        cut = draw.randint(1, net.n - 1)
        net.partition(order[:cut], order[cut:])
    elif event < 0.85:
        net.world.network.heal()


@pytest.mark.parametrize("seed", spread(range(12), 2))
def test_everything_at_once(seed: int) -> None:
    everything_at_once(seed)


@pytest.mark.parametrize("seed", spread(range(3), 1))
def test_everything_at_once_among_seven(seed: int) -> None:
    everything_at_once(seed, n=7)


@pytest.mark.parametrize("seed", [36])
def test_regression_an_answer_about_one_branch_moved_the_cursor_of_another(seed: int) -> None:
    """A vote's block was asked for above its own height ever after, and never came."""
    everything_at_once(seed)


@pytest.mark.parametrize("seed", [73, 178, 191])
def test_regression_a_completed_round_named_a_block_that_finality_had_pruned(seed: int) -> None:
    """The restarted voter took its own record for damage; now a record brings its headers."""
    everything_at_once(seed)


def test_on_a_ring_everything_is_passed_on_by_asking() -> None:
    """Each of seven validators has two neighbours: blocks and votes reach the rest in hops."""
    net = PublicNetwork(7, seed=12)

    def ring(envelope: Envelope) -> Verdict | None:
        distance = (net.ids.index(envelope.sender) - net.ids.index(envelope.receiver)) % 7
        return None if distance in (1, 6) else Drop()

    net.world.network.rules.append(ring)
    net.world.start()
    assert net.run_to(12, slots=40)
    net.settle()


def test_transactions_are_final_once_whatever_forks_did() -> None:
    net = PublicNetwork(seed=10, profile=ROUGH)
    net.world.start()
    for nonce in range(10):
        net.world.submit(net.ids[nonce % 4], [transfer(0, nonce, 3), transfer(1, nonce, 5)])
        net.run_slots(2)
    net.settle()
    for index in range(4):
        state = State(net.node(index).head.state)
        assert TOKENS.balance(state, "GRID", TREASURY) == 80
    assert net.ledger.check_invariants(net.node(0).head.state) == []


def test_transactions_of_an_abandoned_fork_return_to_the_pool() -> None:
    net = PublicNetwork(seed=11)
    net.world.start()
    assert net.run_to(3, slots=8)
    net.partition([0], [1, 2, 3])
    net.world.submit(net.ids[0], [transfer(2, 0, 7)])
    net.run_slots(15)  # validator 0 has built it into its own fork by now
    assert TOKENS.balance(State(net.node(0).best.state), "GRID", TREASURY) == 7
    net.settle(further=10)
    assert TOKENS.balance(State(net.node(1).head.state), "GRID", TREASURY) == 7


def test_one_validator_alone_is_a_chain() -> None:
    net = PublicNetwork(1)
    net.world.start()
    assert net.run_to(10, slots=12)


def real_keys(index: int) -> NodeKeys:
    seed = sha256(b"real validator", bytes((index,)))
    return NodeKeys(Ed25519Signer(seed), Ed25519Vrf(seed), Ed25519VrfVerifier())


def test_with_real_signatures_and_lotteries() -> None:
    net = PublicNetwork(keys=real_keys, verifier=Ed25519Verifier())
    net.world.start()
    assert net.run_to(8, slots=12)
    net.check_disks()
