"""One network in containers, its whole life: brought up, hurt, stopped, resumed, judged.

Law of the file: the tests are its days, in order, and share the network, for bringing it up costs a
minute. Whatever is done to containers, the chains go on without them (one of four may be missing),
the hurt ones come back within a bound, and at the end nothing that was acknowledged is missing.
"""

import datetime as dt
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from tests.e2e.docker import (
    CHAINS,
    HARMS,
    HOME,
    ComposeNetwork,
    all_at_once,
    docker,
    tell,
)
from tests.e2e.testnet import free_base, room_for_a_network
from tests.e2e.testnet_disks import SEEN_VOTING_S, booked_registers, signed_registers, votes

from gridtokenx.host.storage import Store
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.ledger.records import final_height, load_block

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.timeout(900)]

FINAL_S = 60.0
"""From `up`, with images built, until all three chains finalise."""
GO_ON_S = 60.0
"""Chains have two more blocks without one node each, even if one of these was the leader.

The public chain decides: slots of 6 s, a fifth of them empty without their author, then finality.
"""
BACK_S = 30.0
"""A container that came back does its work again: nine at once, each with an interpreter to start."""
STOP_S = 40.0
"""`stop` of all containers, each within its grace."""
DOWN_S = 20.0
"""The least time between `stop` and `up`, to see that network time stands still in it."""
CLOCK_SLACK_S = 6.0
"""Heartbeats are a second apart, and starting takes some."""
INTERVAL_MS = 1_800_000
INTERVAL_S = 30
QUIET_S = (15, 20)
"""After a boundary: its readings are in blocks, and the next one is not near."""
LEADER = "the consortium's leader"
VICTIMS = (
    "public-1", LEADER, "oracle-2", "relayer-0", "gateway", "broker", "market-data", "devices",
    "agents",
)  # fmt: skip
"""One of every kind, all at once."""
TAIL_LINES = 40
CONTAINER_USER = (10_001, 10_001)
ORACLES = tuple(f"oracle-{index}" for index in range(4))
ROUTES = (
    "oracle-consortium", "consortium-oracle", "oracle-public", "public-consortium",
    "consortium-public",
)  # fmt: skip
SHOWN = ("chains", "readings", "auctions", "settlements", "certificates", "packets")
INVARIANTS = {
    "public_agreement", "consortium_agreement", "oracle_agreement", "public_reexecutes",
    "consortium_reexecutes", "oracle_reexecutes", "public_ledger", "consortium_ledger",
    "oracle_ledger", "packets_end_once", "settled_once", "settled_as_reported", "certified_once",
    "certified_as_attested", "grid_conserved_across_chains",
}  # fmt: skip


def give_away(directory: Path) -> None:
    """Let containers own what was copied out of one."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, *CONTAINER_USER)


Change = Callable[[ComposeNetwork, Path], dict[str, str]]
"""Given the network and a directory: other mounts for a container, source by destination."""


def genesis_of_another_chain(network: ComposeNetwork, directory: Path) -> dict[str, str]:
    copied = directory / "genesis"
    docker("cp", f"{network.container('consortium-0').id}:{HOME}/genesis", copied)
    shutil.copyfile(copied / "oracle.json", copied / "consortium.json")
    give_away(copied)
    return {f"{HOME}/genesis": str(copied)}


def data_of(other: str) -> Change:
    def change(network: ComposeNetwork, directory: Path) -> dict[str, str]:
        copied = directory / "data"
        docker("cp", f"{network.container(other).id}:{HOME}/{other}/data", copied)
        give_away(copied)
        return {f"{HOME}/consortium-0/data": str(copied)}

    return change


def read_only(network: ComposeNetwork, _directory: Path) -> dict[str, str]:
    volume = network.container("consortium-0").volumes[f"{HOME}/consortium-0"]
    return {f"{HOME}/consortium-0": f"{volume}:ro"}


REFUSED: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "genesis of another chain": ("consortium-0", genesis_of_another_chain, ("genesis",)),
    "data of another chain": ("consortium-0", data_of("oracle-0"), ("data",)),
    "data of another node": ("consortium-0", data_of("consortium-1"), ("data",)),
    "read-only volume": ("consortium-0", read_only, ("data",)),
}


@dataclass(frozen=True, slots=True)
class Hurt:
    """A node that something happened to, in network time."""

    harm: str
    node: str
    began_ms: int
    mended_ms: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The network just before it was stopped."""

    heights: dict[str, int]
    network_ms: int
    """Network time when it was all down; at most, for it goes on while containers stop."""
    at_s: float
    """The same by this machine's monotonic clock."""


@dataclass(frozen=True, slots=True)
class Left:
    """What the network left on disk; `testnet_disks` reads it."""

    layout: Layout


@dataclass(slots=True)
class Life:
    """The network, and what has been seen of it so far."""

    network: ComposeNetwork
    tell: Callable[[str], None]
    first_final_s: float = 0.0
    acknowledged: dict[tuple[str, int], str] = field(default_factory=dict)
    """Hashes of blocks that the gateway showed as final."""
    hurt: list[Hurt] = field(default_factory=list)
    stopped: Stopped | None = None

    def network_ms(self) -> int:
        """Network time, as the gateway tells it."""
        status = self.network.status()
        assert status is not None
        return int(status["network_ms"])

    def remember(self) -> None:
        """Note what is final now."""
        self.acknowledged |= self.network.headers()


@pytest.fixture(scope="module")
def life(
    images: dict[str, int], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Life]:
    """One network for the whole file; whatever happens, nothing of it is left afterwards."""

    failed = request.session.testsfailed
    directory = tmp_path_factory.mktemp("compose")
    with room_for_a_network():
        network = ComposeNetwork(f"gtxtest{free_base()}", free_base(), directory)
        life = Life(network, partial(tell, request.config))
        try:
            bring_up(life)
            yield life
        finally:
            try:
                logs = network.logs()
                if life.first_final_s == 0 or request.session.testsfailed > failed:
                    tell_tails(life, logs)
            finally:
                network.clear()


def tell_tails(life: Life, logs: dict[str, list[str]]) -> None:
    for service, lines in logs.items():
        tail = "\n".join(lines[-TAIL_LINES:])
        life.tell(f"--- {service} (all logs in whole: {life.network.directory}/logs)\n{tail}\n")


def bring_up(life: Life) -> None:
    began = time.monotonic()
    life.network.compose("up", "--detach", "--no-build", timeout_s=300)
    made_s = time.monotonic() - began
    life.network.wait_for(
        "three chains that finalise", lambda: finalises(life.network), 2 * FINAL_S
    )
    life.first_final_s = time.monotonic() - began
    life.tell(f"up after {made_s:.1f} s, final on all chains after {life.first_final_s:.1f} s")


def finalises(network: ComposeNetwork) -> bool:
    heights = network.finalized()
    return bool(heights) and all(height > 0 for height in heights.values())


# -- up --------------------------------------------------------------------------------------------


def test_it_is_final_on_all_chains_within_a_minute(life: Life) -> None:
    assert life.first_final_s <= FINAL_S
    assert life.network.wait_for("everyone to be ready", lambda: all_ready(life.network), BACK_S)


def all_ready(network: ComposeNetwork) -> bool:
    return not any(trouble(network, name) for name in network.services())


def trouble(network: ComposeNetwork, service: str) -> str:
    """Why a process does not do its work; a broker's is that the oracles are connected."""
    if service == "broker":
        connected = {name: network.number(name, "gtx_broker_connected") for name in ORACLES}
        return "" if set(connected.values()) == {1} else str(connected)
    code, body = network.get(service, "/ready")
    return "" if code == 200 else f"{code} {body.decode()}"


def test_a_twin_with_the_same_key_signs_nothing(life: Life, tmp_path: Path) -> None:
    """A home that was copied, as to a new machine, while the old one still runs."""
    network, name = life.network, "consortium-3"
    copied = tmp_path / name
    docker("cp", f"{network.container(name).id}:{HOME}/{name}", copied)
    shutil.rmtree(copied / "data")
    give_away(copied)
    said = network.run_again(name, {f"{HOME}/{name}": str(copied)}, f"{network.project}_consortium")
    said.refused("another process runs with the key", "nothing was signed here")
    assert network.get(name, "/ready")[0] == 200, "who was first stays"


# -- hurt ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(HARMS))
def test_chains_go_on_without_one_of_every_kind(life: Life, name: str) -> None:
    network, harm = life.network, HARMS[name]
    network.wait_for("everyone to be ready", lambda: all_ready(network), BACK_S)
    life.remember()
    victims = [leader(network) if each is LEADER else each for each in VICTIMS]
    witnesses = {chain: witness(chain, victims) for chain in CHAINS}
    found = network.containers()
    chosen = [found[victim] for victim in victims]
    began_ms, before = life.network_ms(), heights(network, witnesses)
    began = time.monotonic()
    all_at_once(harm.do, chosen)
    if harm.mend is not None:
        network.wait_for(
            lambda: f"blocks beyond {before} without them: {heights(network, witnesses)}",
            lambda: grew(network, witnesses, before),
            GO_ON_S,
        )
        all_at_once(harm.mend, chosen)
    mended_s = time.monotonic() - began
    seen = heights(network, witnesses)
    back = all_at_once(lambda victim: back_after_s(life, victim, seen), victims)
    mended_ms = began_ms + int(mended_s * 1000)
    life.hurt += [Hurt(name, each, began_ms, mended_ms) for each in victims if chain_of(each)]
    told = ", ".join(f"{victim} {s:.0f}" for victim, s in zip(victims, back, strict=True))
    life.tell(f"{name} for {mended_s:.1f} s; back after: {told} s")
    network.wait_for("blocks with them", lambda: grew(network, witnesses, seen), GO_ON_S)


def leader(network: ComposeNetwork) -> str:
    """The node that leads the consortium now."""
    status = network.status()
    assert status is not None
    return str(status["chains"]["consortium"]["leader"])


def chain_of(service: str) -> str:
    chain = service.rpartition("-")[0]
    return chain if chain in CHAINS else ""


def witness(chain: str, victims: list[str]) -> str:
    """A node that nothing happens to."""
    return next(name for name in (f"{chain}-{i}" for i in range(4)) if name not in victims)


def heights(network: ComposeNetwork, nodes: dict[str, str]) -> dict[str, float]:
    """Final heights of some nodes, by chain."""
    found = {chain: network.number(node, "gtx_final_height") for chain, node in nodes.items()}
    assert None not in found.values(), found
    return {chain: height for chain, height in found.items() if height is not None}


def grew(network: ComposeNetwork, nodes: dict[str, str], before: dict[str, float]) -> bool:
    """Whether each chain has two more final blocks."""
    now = heights(network, nodes)
    return all(now[chain] >= before[chain] + 2 for chain in before)


def back_after_s(life: Life, victim: str, seen: dict[str, float]) -> float:
    """Seconds until it does its work and knows at least what its chain had when it came back."""
    network, chain = life.network, chain_of(victim)
    why = ""

    def is_current() -> bool:
        nonlocal why
        why = trouble(network, victim)
        if not why and victim == "gateway":
            shown = network.finalized()
            why = "" if all(shown.get(each, -1) >= seen[each] for each in seen) else f"at {shown}"
        elif not why and chain:
            height = network.number(victim, "gtx_final_height") or -1
            why = "" if height >= seen[chain] else f"at {height} of {seen[chain]}"
        return not why

    return network.wait_for(lambda: f"{victim} to be back: {why}", is_current, BACK_S)


# -- stopped and resumed ---------------------------------------------------------------------------


def test_it_trades_settles_and_certifies_after_all_that(life: Life) -> None:
    settled = life.network.settled()

    def works() -> bool:
        now = life.network.status()
        return (
            now is not None
            and now["settlements"]["intervals"] > settled
            and now["market"]["auctions_cleared"] >= 1
            and now["certificates"]["minted_wh"] > 0
        )

    life.network.wait_for("another settled interval", works, 3 * INTERVAL_S)
    life.remember()


def test_it_stops_in_order(life: Life) -> None:
    life.stopped = stop_when_quiet(life)
    ended = {name: each.state["ExitCode"] for name, each in life.network.containers().items()}
    assert set(ended.values()) == {0}, ended


def stop_when_quiet(life: Life) -> Stopped:
    """Stop everything in a moment in which all that meters signed is in blocks."""
    network = life.network
    network.wait_for("a quiet moment", lambda: is_quiet(network), 2 * INTERVAL_S)
    life.remember()
    heights_then, network_ms = network.finalized(), life.network_ms()
    began = time.monotonic()
    network.compose("stop", "devices")
    network.compose("stop")
    seconds = time.monotonic() - began
    life.tell(f"stopped after {seconds:.1f} s")
    assert seconds <= STOP_S
    return Stopped(heights_then, network_ms + int(seconds * 1000), began + seconds)


def is_quiet(network: ComposeNetwork) -> bool:
    """Whether the last boundary's readings had time to be final, and the next one is not near."""
    status = network.status()
    assert status is not None
    grid = dt.datetime.fromisoformat(status["grid_time"])
    since_s = (grid.minute % 30 * 60 + grid.second) / (INTERVAL_MS / 1000 / INTERVAL_S)
    return QUIET_S[0] <= since_s <= QUIET_S[1]


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_container_refuses_what_is_not_its_own(life: Life, tmp_path: Path, name: str) -> None:
    service, change, words = REFUSED[name]
    assert life.stopped is not None, "this needs the network to be stopped"
    said = life.network.run_again(service, change(life.network, tmp_path))
    life.tell(said.err.strip())
    said.refused(*words)


def test_it_goes_on_where_it_was(life: Life) -> None:
    network, stopped = life.network, life.stopped
    assert stopped is not None
    time.sleep(max(0.0, stopped.at_s + DOWN_S - time.monotonic()))
    began, down_s = time.monotonic(), time.monotonic() - stopped.at_s
    network.compose("up", "--detach", "--no-build", timeout_s=300)

    def goes_on() -> bool:
        now = network.finalized()
        return bool(now) and all(now[chain] > stopped.heights[chain] for chain in CHAINS)

    network.wait_for("heights beyond the last ones", goes_on, FINAL_S)
    passed_s = (life.network_ms() - stopped.network_ms) / 1000
    running_s = time.monotonic() - stopped.at_s - down_s
    life.tell(f"went on after {time.monotonic() - began:.1f} s; down for {down_s:.0f} s, of which")
    life.tell(f"network time saw {passed_s - running_s:.1f} s")
    assert -STOP_S <= passed_s - running_s <= CLOCK_SLACK_S
    life.stopped = None


# -- judged ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def left(life: Life, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """The disks of the network after its last stop."""
    settled = life.network.settled()
    life.network.wait_for(
        "an interval after the resumption",
        lambda: life.network.settled() > settled,
        3 * INTERVAL_S,
    )
    stop_when_quiet(life)
    return Left(life.network.copy(tmp_path_factory.mktemp("left") / "home"))


def test_every_invariant_held(life: Life, left: Left) -> None:
    """By the service that the compose file has for it, which exits with 1 if one did not."""
    summary = json.loads(life.network.compose("run", "--rm", "audit", timeout_s=300))
    life.tell(json.dumps({key: summary[key] for key in SHOWN}))
    assert summary["broken"] == {}
    assert all(summary["invariants"].values())
    assert summary["invariants"].keys() >= INVARIANTS
    assert summary["readings"]["verified"] > 0
    assert summary["auctions"]["cleared"] >= 3
    assert summary["settlements"]["intervals"] >= 3
    assert summary["certificates"]["minted_wh"] > 0
    for route in ROUTES:
        assert summary["packets"][route]["delivered"] > 0, summary["packets"]


def test_what_was_shown_as_final_is_on_every_disk(life: Life, left: Left) -> None:
    assert {chain for chain, _ in life.acknowledged} == set(CHAINS)
    for chain in CHAINS:
        shown = {height: each for (of, height), each in life.acknowledged.items() if of == chain}
        kept = [blocks_of(left.layout, member.name) for member in left.layout.nodes(chain)]
        for height, block_hash in shown.items():
            have = [blocks[height] for blocks in kept if height in blocks]
            assert set(have) == {block_hash}, (chain, height)
            assert len(have) >= len(kept) - 1, (chain, height, "is on too few disks")


def blocks_of(layout: Layout, node: str) -> dict[int, str]:
    """Hashes of a node's final blocks by height."""
    store = Store.open(layout.directory(node) / "data", read_only=True)
    try:
        loaded = (load_block(store, height) for height in range(1, (final_height(store) or 0) + 1))
        return {block.height: block.hash.hex() for block in loaded if block is not None}
    finally:
        store.close()


def test_every_hurt_node_votes_again(life: Life, left: Left) -> None:
    signed = {node: votes(left, node) for node in {hurt.node for hurt in life.hurt}}
    for hurt in life.hurt:
        later = (v.timestamp_ms for v in signed[hurt.node] if v.timestamp_ms > hurt.mended_ms)
        again_s = well_ms(life, hurt.node, hurt.mended_ms, min(later, default=sys.maxsize)) / 1000
        life.tell(f"{hurt.node}, {hurt.harm}, voted again after {again_s:.1f} s")
        assert again_s <= SEEN_VOTING_S[chain_of(hurt.node)], hurt


def well_ms(life: Life, node: str, since_ms: int, until_ms: int) -> int:
    """How much of a time a node was not hurt in: the next harm may come before its next vote."""
    hurt_ms = sum(
        max(0, min(hurt.mended_ms, until_ms) - max(hurt.began_ms, since_ms))
        for hurt in life.hurt
        if hurt.node == node
    )
    return until_ms - since_ms - hurt_ms


def test_no_energy_is_lost(left: Left) -> None:
    """What the meters last signed is what the chain last booked."""
    booked, signed = booked_registers(left, INTERVAL_MS), signed_registers(left)
    assert booked == {key: signed[key] for key in booked}
    assert sum(registers.import_wh for registers in booked.values() if registers) > 0


def test_no_process_met_anything_unexpected(life: Life, left: Left) -> None:
    logs = life.network.logs()
    assert {name: lines for name, lines in logs.items() if "Traceback" in "".join(lines)} == {}
