"""The driver: order of effects, timers, signatures, fail-stop, and kills between any two of them."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.stages import spread
from tests.unit.host_network import until

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.errors import LocalFault, RemoteFault
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.core.machine import (
    Broadcast,
    CancelTimer,
    Committed,
    Effect,
    Event,
    Log,
    Misbehaviour,
    PeerConnected,
    Persist,
    Received,
    Reject,
    Send,
    SetTimer,
    SignatureCheck,
    Start,
    Submitted,
    TimerFired,
    Unknown,
    Write,
)
from gridtokenx.host import driver, pending
from gridtokenx.host.checking import CachingVerifier, SignatureChecker
from gridtokenx.host.clock import NetworkClock
from gridtokenx.host.driver import (
    EVIDENCE,
    PATIENT_FRAMES,
    Driver,
    DriverParts,
    MachineHalted,
)
from gridtokenx.host.framing import Channel
from gridtokenx.host.link import Link, LinkLimits
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.host.pending import GUESTS, PART_CHECKS, Pending
from gridtokenx.host.storage import Store

PEER, OTHER = b"p" * 32, b"o" * 32
THIRD, GUEST = b"t" * 32, b"g" * 32


class Note(Wire, frozen=True, tag="test.note"):
    """A numbered message, signed over its number by `key`."""

    number: int
    key: bytes
    signature: bytes


class Pile(Wire, frozen=True, tag="test.pile"):
    """As many notes as one likes: the proposals among messages."""

    notes: tuple[Note, ...]

    @property
    def number(self) -> int:
        """Of the first of them."""
        return self.notes[0].number


class Oddity(Wire, frozen=True, tag="test.oddity"):
    """A message that no key could make valid."""


class Gossip(Wire, frozen=True, tag="test.gossip"):
    """A message that may wait."""

    number: int


Message = Note | Pile | Oddity | Gossip
SIGNER = Ed25519Signer(bytes(32))


def note(number: int) -> Note:
    return Note(number, SIGNER.public_key, SIGNER.sign(number.to_bytes(8, "big")))


def pile(first: int, count: int) -> Pile:
    return Pile(tuple(map(note, range(first, first + count))))


class Script:
    """A machine whose reactions a test writes down."""

    def __init__(self, react: Callable[[Event], Sequence[Effect]]) -> None:
        self.react = react
        self.events: list[Event] = []
        self.known = True

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        match message:
            case Note(number, key, signature):
                if not self.known:
                    return Unknown("later")
                return [SignatureCheck(key, number.to_bytes(8, "big"), signature)]
            case Pile(notes):
                return [
                    SignatureCheck(n.key, n.number.to_bytes(8, "big"), n.signature) for n in notes
                ]
            case Gossip():
                return ()
        raise RemoteFault("impossible", "no key")

    def step(self, now: int, event: Event) -> Sequence[Effect]:
        self.events.append(event)
        return self.react(event)

    def numbers(self) -> list[int]:
        return [
            event.verified.message.number
            for event in self.events
            if isinstance(event, Received) and isinstance(event.verified.message, Note | Pile)
        ]


class FakeLinks:
    """What leaves, in order."""

    def __init__(self, store: Store) -> None:
        self.left: list[object] = []
        self.faults: list[tuple[bytes, str]] = []
        self.members: tuple[bytes, ...] = (PEER, OTHER)
        self.tolerated = 1
        self._store = store

    def send(self, peer: bytes, channel: Channel, body: bytes) -> bool:
        self.left.append((peer, body))
        return True

    def broadcast(self, channel: Channel, body: bytes) -> None:
        self.left.append(("all", body))

    def fault(self, identity: bytes, fault: RemoteFault) -> None:
        self.faults.append((identity, fault.reason))


class Stage:
    """A driver with a scripted machine on a real store."""

    def __init__(self, home: Path, machine: Script, threads: int = 0) -> None:
        self.machine = machine
        self.store = Store.open(home)
        self.metrics = Metrics()
        self.links = FakeLinks(self.store)
        self.committed: list[Committed] = []
        checker = SignatureChecker(CachingVerifier(Ed25519Verifier()), threads)
        self.parts = DriverParts(self.store, NetworkClock(), checker, self.metrics, NullLogger())
        self.driver = Driver(machine, Message, self.links, self.parts, self._on_committed)

    def _on_committed(self, effect: Committed) -> None:
        self.committed.append(effect)

    def deliver(self, *bodies: bytes, sender: bytes = PEER) -> None:
        link = Link(LinkLimits(), on_ready=self.driver.frames_ready)
        link.raise_up(sender, "peer")
        for body in bodies:
            link._take_frame(Channel.MACHINE, body)


@asynccontextmanager
async def staged(
    home: Path, react: Callable[[Event], Sequence[Effect]], threads: int = 0
) -> AsyncIterator[Stage]:
    stage = Stage(home, Script(react), threads)
    task = asyncio.create_task(stage.driver.run())
    await until(lambda: stage.machine.events)
    try:
        yield stage
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stage.store.drain()
        stage.store.close()
        stage.parts.checker.close()


def nothing(event: Event) -> Sequence[Effect]:
    return ()


async def test_a_machine_is_asked_when_the_turn_of_a_message_comes(tmp_path: Path) -> None:
    """Not before: the first votes of a batch may make the signatures of the others needless."""
    order: list[str] = []

    def react(event: Event) -> Sequence[Effect]:
        if isinstance(event, Received):
            order.append("step")
        return ()

    async with staged(tmp_path, react) as stage:
        name = stage.machine.verification

        def asked(message: Wire) -> Sequence[SignatureCheck] | Unknown:
            order.append("asked")
            return name(message)

        stage.machine.verification = asked  # type: ignore[method-assign]
        stage.deliver(*(encode(note(number)) for number in range(3)))
        await until(lambda: len(stage.machine.numbers()) == 3)
    assert order == ["asked", "step"] * 3


async def test_nothing_visible_leaves_before_what_was_persisted_earlier(tmp_path: Path) -> None:
    key = b"k"
    durable_when_sent: list[bool] = []

    def react(event: Event) -> Sequence[Effect]:
        if not isinstance(event, Submitted):
            return ()
        if event.transactions:
            return [Send(OTHER, note(3))]  # a later step waits too
        return [
            Send(PEER, note(0)),
            Persist((Write("t", key, b"1"),)),
            Send(PEER, note(1)),
            Broadcast(note(2)),
            Committed(7, "block"),
        ]

    async with staged(tmp_path, react) as stage:
        original = stage.links.send

        def send(peer: bytes, channel: Channel, body: bytes) -> bool:
            with stage.store._env.begin() as transaction:
                durable_when_sent.append(transaction.get(b"\x01t" + key) is not None)
            return original(peer, channel, body)

        stage.links.send = send  # type: ignore[method-assign]
        stage.driver.submit([])
        stage.driver.submit([note(9)])
        await until(lambda: len(stage.links.left) == 4)
        targets = [PEER, PEER, "all", OTHER]
        bodies = [encode(note(number)) for number in range(4)]
        assert stage.links.left == list(zip(targets, bodies, strict=True))
        assert durable_when_sent == [False, True, True]
        assert stage.committed == [Committed(7, "block")]


async def test_messages_enter_verified_and_in_the_order_of_their_peer(tmp_path: Path) -> None:
    for threads in (0, 2):
        async with staged(tmp_path / str(threads), nothing, threads) as stage:
            stage.deliver(*(encode(note(number)) for number in range(300)))
            await until(lambda: len(stage.machine.numbers()) == 300)
            assert stage.machine.numbers() == list(range(300))
            received = stage.machine.events[-1]
            assert isinstance(received, Received)
            assert received.verified.sender == PEER


async def test_peers_are_served_in_turn(tmp_path: Path) -> None:
    async with staged(tmp_path, nothing) as stage:
        stage.deliver(*(encode(note(number)) for number in range(500)))
        stage.deliver(encode(note(1000)), sender=OTHER)
        await until(lambda: 1000 in stage.machine.numbers())
        assert stage.machine.numbers().index(1000) < 100


async def test_patient_messages_are_overtaken_and_all_arrive_in_their_order(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path, nothing) as stage:
        stage.driver._patient_types = (Gossip,)
        gossip = [encode(Gossip(number)) for number in range(PATIENT_FRAMES + 40)]
        stage.deliver(*gossip, *(encode(note(number)) for number in range(4)))
        stage.deliver(*(encode(note(number)) for number in range(100, 104)), sender=OTHER)

        def seen() -> list[Wire]:
            return [e.verified.message for e in stage.machine.events if isinstance(e, Received)]

        await until(lambda: len(seen()) == len(gossip) + 8)
        kinds = [type(message).__name__ for message in seen()]
        assert kinds.index("Gossip") > kinds.index("Note"), "what waits for nobody comes first"
        numbers = [message.number for message in seen() if isinstance(message, Gossip)]
        assert numbers == list(range(len(gossip)))
        assert [n for n in stage.machine.numbers() if n < 100] == list(range(4))


async def test_an_alarm_that_rings_early_is_set_again(tmp_path: Path) -> None:
    def react(event: Event) -> Sequence[Effect]:
        if isinstance(event, Start):
            return [SetTimer("soon", stage_clock() + 60), SetTimer("later", stage_clock() + 90)]
        return ()

    stage_clock = NetworkClock().now_ms
    async with staged(tmp_path, react) as stage:
        stage.driver._ring()
        await until(lambda: TimerFired("later") in stage.machine.events)
        fired = [event for event in stage.machine.events if isinstance(event, TimerFired)]
        assert fired == [TimerFired("soon"), TimerFired("later")]


async def test_bad_messages_are_faults_of_their_sender_and_go_no_further(tmp_path: Path) -> None:
    forged = Note(1, SIGNER.public_key, bytes(64))
    async with staged(tmp_path, nothing) as stage:
        stage.deliver(b"\xc1junk", encode(Oddity()), encode(forged), encode(note(2)))
        await until(lambda: stage.machine.numbers() == [2])
        assert stage.links.faults == [
            (PEER, "malformed"),
            (PEER, "impossible"),
            (PEER, "bad-signature"),
        ]


async def test_messages_of_unknown_sets_wait_for_a_commit_within_bounds(tmp_path: Path) -> None:
    def react(event: Event) -> Sequence[Effect]:
        return [Committed(1, None)] if isinstance(event, Submitted) else ()

    async with staged(tmp_path, react) as stage:
        stage.machine.known = False
        stage.deliver(*(encode(note(number)) for number in range(70)))
        await until(lambda: stage.metrics.value("stash_dropped") == 6)
        assert not stage.links.faults, "it is this node that is behind"
        stage.machine.known = True
        stage.driver.submit([])
        await until(lambda: stage.machine.numbers() == list(range(6, 70)))


async def test_what_waits_unchecked_is_bounded_in_bytes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 messages of a set to come, each as large as a frame, took half a gibibyte; of every peer."""
    monkeypatch.setattr(pending, "STASHED_BYTES", 10 * len(encode(note(100))))

    def react(event: Event) -> Sequence[Effect]:
        return [Committed(1, None)] if isinstance(event, Submitted) else ()

    async with staged(tmp_path, react) as stage:
        stage.machine.known = False
        stage.deliver(*(encode(note(number)) for number in range(100, 120)))
        stage.deliver(encode(note(7)), sender=OTHER)
        await until(lambda: stage.metrics.value("stash_dropped") == 10)
        stage.machine.known = True
        stage.driver.submit([])
        await until(lambda: len(stage.machine.numbers()) == 11)
        assert stage.machine.numbers() == [*range(110, 120), 7]


async def test_patient_messages_are_bounded_in_bytes_and_all_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "PATIENT_BYTES", 1)
    most = 0
    async with staged(tmp_path, nothing) as stage:
        stage.driver._patient_types = (Gossip,)
        received = stage.driver._some_patient

        def some_patient() -> "list[Pending]":
            nonlocal most
            most = max(most, *map(len, stage.driver._patient.values()))
            return received()

        monkeypatch.setattr(stage.driver, "_some_patient", some_patient)
        stage.deliver(*(encode(Gossip(number)) for number in range(200)))
        stage.deliver(*(encode(Gossip(number)) for number in range(200)), sender=OTHER)
        await until(lambda: sum(isinstance(e, Received) for e in stage.machine.events) == 400)
        assert most <= driver.FRAMES_PER_LINK
        assert not stage.driver._patient
        assert not stage.driver._patient_of


async def test_clients_wait_while_gossip_of_more_than_may_be_faulty_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever took more from clients than from members never saw what the leader lacked."""
    monkeypatch.setattr(driver, "ROOM_S", 0.05)
    async with staged(tmp_path, nothing) as stage:
        behind = stage.driver
        stage.links.members = (PEER, OTHER, THIRD)
        await behind.room()
        behind._patient_of[PEER] = 10 * driver.BEHIND_BYTES
        behind._look_for_room()
        await behind.room()  # one of four may be faulty, however much it sends
        behind._patient_of[OTHER] = driver.BEHIND_BYTES + 1
        behind._look_for_room()
        with pytest.raises(RemoteFault, match="busy"):
            await behind.room()
        monkeypatch.setattr(driver, "ROOM_S", 5)
        waiting = asyncio.create_task(behind.room())
        await asyncio.sleep(0)
        del behind._patient_of[OTHER]
        behind._look_for_room()
        await waiting


async def test_a_link_that_is_down_changes_nothing_about_how_many_may_be_faulty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two links of three were taken for a chain of three, which tolerates nobody."""
    monkeypatch.setattr(driver, "ROOM_S", 0.05)
    async with staged(tmp_path, nothing) as stage:
        stage.links.members = (PEER, OTHER)
        stage.driver._patient_of[PEER] = 10 * driver.BEHIND_BYTES
        stage.driver._look_for_room()
        await stage.driver.room()


async def test_a_node_that_stays_behind_lets_a_link_wait_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each submission of a gateway waited its own second, and what its link asked behind them too."""
    monkeypatch.setattr(driver, "ROOM_S", 0.2)
    async with staged(tmp_path, nothing) as stage:
        stage.links.members = (PEER, OTHER, THIRD)
        for member in (PEER, OTHER):
            stage.driver._patient_of[member] = 10 * driver.BEHIND_BYTES
        stage.driver._look_for_room()
        before_s = asyncio.get_running_loop().time()
        for _ in range(100):
            with pytest.raises(RemoteFault, match="busy"):
                await stage.driver.room()
        assert asyncio.get_running_loop().time() - before_s < 5, "not 20"


@pytest.mark.parametrize("flooder", [THIRD, GUEST])
async def test_who_sends_much_delays_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flooder: bytes
) -> None:
    """Gossip stood in one line: behind what a member, or a guest, flooded, others' looked like a backlog."""
    monkeypatch.setattr(driver, "PATIENT_FRAMES", 20)
    async with staged(tmp_path, nothing) as stage:
        stage.links.members = (PEER, OTHER, THIRD)
        stage.driver._patient_types = (Gossip,)
        monkeypatch.setattr(driver, "BATCH_FRAMES", 3)
        for _ in range(5):
            stage.deliver(*(encode(Gossip(number)) for number in range(30)), sender=flooder)
        for sender in (PEER, OTHER):
            stage.deliver(*(encode(Gossip(number)) for number in range(10)), sender=sender)
        stage.deliver(encode(note(7)), sender=PEER)

        await until(lambda: len(stage.machine.events) == 1 + 150 + 21)
        events = [event for event in stage.machine.events if isinstance(event, Received)]
        last = max(at for at, event in enumerate(events) if event.verified.sender != flooder)
        assert last < 70, "with one line they came last"


async def test_lines_take_turns_by_the_signature(tmp_path: Path) -> None:
    """Full frames of a flooder cost a hundred times as much as those of others, and had as many turns."""
    async with staged(tmp_path, nothing) as stage:
        stage.links.members = (PEER, OTHER, THIRD)
        stage.driver._patient_types = (Gossip,)
        (check,) = stage.machine.verification(note(1))  # type: ignore[misc]

        def costs(message: Wire) -> Sequence[SignatureCheck]:
            assert isinstance(message, Gossip)
            return [check] * message.number

        stage.machine.verification = costs  # type: ignore[method-assign]
        stage.deliver(*(encode(Gossip(64)) for _ in range(16)), sender=THIRD)
        stage.deliver(*(encode(Gossip(1)) for _ in range(16)), sender=OTHER)
        await until(lambda: len(stage.machine.events) == 1 + 32)
        events = [event for event in stage.machine.events if isinstance(event, Received)]
        last = max(at for at, event in enumerate(events) if event.verified.sender == OTHER)
        assert last <= 17, "one of the other, or two, comes between"


@pytest.mark.parametrize("threads", [0, 2])
async def test_a_message_with_many_signatures_holds_up_nobody_but_its_sender(
    tmp_path: Path, threads: int
) -> None:
    """A traitor's proposals for distant views were checked whole, 10,000 signatures before the next vote."""

    def react(event: Event) -> Sequence[Effect]:
        if isinstance(event, Received) and event.verified.sender == OTHER:
            number = stage.machine.numbers()[-1]
            if number < 6:
                stage.deliver(encode(note(number + 1)), sender=OTHER)
        return ()

    long = [pile(number, 10 * PART_CHECKS) for number in (0, 1_000)]
    async with staged(tmp_path, react, threads) as stage:
        stage.deliver(*(encode(each) for each in (*long, note(1))), sender=PEER)
        stage.deliver(encode(note(2)), sender=OTHER)
        await until(lambda: len(stage.machine.numbers()) == 8)
        assert stage.machine.numbers() == [2, 3, 4, 5, 6, 0, 1_000, 1]
        assert not stage.links.faults


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("bad", [0, PART_CHECKS, 3 * PART_CHECKS - 1])
async def test_one_bad_signature_anywhere_refuses_a_long_message(
    tmp_path: Path, threads: int, bad: int
) -> None:
    good = pile(0, 3 * PART_CHECKS)
    notes = list(good.notes)
    notes[bad] = Note(notes[bad].number, SIGNER.public_key, bytes(64))
    async with staged(tmp_path, nothing, threads) as stage:
        messages = (Pile(tuple(notes)), note(1), good, Oddity(), note(2))
        stage.deliver(*map(encode, messages))
        await until(lambda: len(stage.machine.numbers()) == 3)
        assert stage.machine.numbers() == [1, 0, 2]
        assert stage.links.faults == [(PEER, "bad-signature"), (PEER, "impossible")]


async def test_long_messages_of_several_are_checked_by_turns(tmp_path: Path) -> None:
    async with staged(tmp_path, nothing) as stage:
        stage.deliver(encode(pile(0, 8 * PART_CHECKS)), sender=PEER)
        stage.deliver(encode(pile(1_000, 4 * PART_CHECKS)), sender=OTHER)
        await until(lambda: len(stage.machine.numbers()) == 2)
        assert stage.machine.numbers() == [1_000, 0]


@pytest.mark.parametrize("forged", [False, True])
async def test_what_a_long_message_stands_on_is_asked_again_when_its_turn_comes(
    tmp_path: Path, *, forged: bool
) -> None:
    """Votes of a set to come were nobody's business when they were named, and counted when they were taken."""
    concern = [1_000]

    def react(event: Event) -> Sequence[Effect]:
        if isinstance(event, Received) and event.verified.sender == OTHER:
            concern[0] = 10_000
        return ()

    last = Note(5_000, SIGNER.public_key, bytes(64)) if forged else note(5_000)
    async with staged(tmp_path, react) as stage:
        name = stage.machine.verification

        def asked(message: Wire) -> Sequence[SignatureCheck] | Unknown:
            if isinstance(message, Pile):
                message = Pile(tuple(n for n in message.notes if n.number < concern[0]))
            return name(message)

        stage.machine.verification = asked  # type: ignore[method-assign]
        stage.deliver(encode(Pile((*pile(0, 3 * PART_CHECKS).notes, last))), encode(note(1)))
        stage.deliver(encode(note(2)), sender=OTHER)
        await until(lambda: 1 in stage.machine.numbers())
        assert stage.machine.numbers() == ([2, 1] if forged else [2, 0, 1])
        assert stage.links.faults == ([(PEER, "bad-signature")] if forged else [])


async def test_signatures_that_are_known_take_no_turns(tmp_path: Path) -> None:
    parts: list[int] = []
    async with staged(tmp_path, nothing) as stage:
        checker = stage.parts.checker
        check = checker.all_valid

        async def counted(groups: Sequence[Sequence[SignatureCheck]]) -> list[bool]:
            parts.extend(map(len, groups))
            return await check(groups)

        checker.all_valid = counted  # type: ignore[method-assign]
        for number in range(2):
            stage.deliver(encode(pile(0, 10 * PART_CHECKS)))
            await until(lambda number=number: len(stage.machine.numbers()) > number)  # type: ignore[misc]
    assert parts == [PART_CHECKS] * 10 + [10 * PART_CHECKS]


async def test_guests_wait_for_their_own_long_messages_only_and_have_a_part_between_them(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path, nothing) as stage:
        stage.links.members = (PEER,)
        for first, guest in enumerate((GUEST, b"h" * 32, b"i" * 32)):
            stage.deliver(encode(pile(first, 10 * PART_CHECKS)), sender=guest)
        stage.deliver(encode(note(5_000)), sender=OTHER)
        stage.deliver(encode(pile(6_000, 9 * PART_CHECKS)), sender=PEER)
        await until(lambda: len(stage.machine.numbers()) == 5)
        assert stage.machine.numbers() == [5_000, 6_000, 0, 1, 2]


async def test_links_that_closed_are_not_kept_for_their_turn(tmp_path: Path) -> None:
    """Each held what it had not given up: who came again and again took the node's memory."""
    async with staged(tmp_path, nothing) as stage:
        asked, gate = asyncio.Event(), asyncio.Event()
        check = stage.parts.checker.all_valid

        async def gated(groups: Sequence[Sequence[SignatureCheck]]) -> list[bool]:
            asked.set()
            await gate.wait()
            return await check(groups)

        stage.parts.checker.all_valid = gated  # type: ignore[method-assign]
        stage.deliver(encode(pile(0, 2 * PART_CHECKS)))
        await asked.wait()
        for number in range(100, 150):
            link = Link(LinkLimits(), on_ready=stage.driver.frames_ready)
            link.raise_up(PEER, "peer")
            link._take_frame(Channel.MACHINE, encode(note(number)))
            link._end("replaced by a newer link")
        gate.set()
        stage.deliver(encode(note(1)))
        await until(lambda: 1 in stage.machine.numbers())
        assert stage.machine.numbers() == [0, 1]


async def test_a_frame_that_is_large_ends_its_links_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "BYTES_PER_LINK", 2 * len(encode(note(100))))
    async with staged(tmp_path, nothing) as stage:
        stage.deliver(*(encode(note(number)) for number in range(100, 110)), sender=PEER)
        stage.deliver(*(encode(note(number)) for number in range(200, 210)), sender=OTHER)
        await until(lambda: len(stage.machine.numbers()) == 20)
        assert stage.machine.numbers()[:6] == [100, 101, 200, 201, 102, 103]


async def test_a_guest_whose_line_another_keeps_full_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links that were passed over lost their turn, and the same one filled the line each time."""
    monkeypatch.setattr(driver, "PATIENT_FRAMES", 4)
    links: list[Link] = []
    heard: list[int] = []

    def react(event: Event) -> Sequence[Effect]:
        if isinstance(event, Received) and event.verified.sender == OTHER:
            heard.append(len(stage.machine.events))
        elif isinstance(event, Received) and not heard:
            assert len(stage.machine.events) < 1_000, "nobody else is heard"
            links[0]._take_frame(Channel.MACHINE, encode(Gossip(1)))
        return ()

    async with staged(tmp_path, react) as stage:
        stage.links.members = (THIRD,)
        stage.driver._patient_types = (Gossip,)
        for guest in (GUEST, OTHER):
            links.append(Link(LinkLimits(), on_ready=stage.driver.frames_ready))
            links[-1].raise_up(guest, "guest")
        for _ in range(32):
            links[0]._take_frame(Channel.MACHINE, encode(Gossip(1)))
        links[1]._take_frame(Channel.MACHINE, encode(note(7)))
        await until(lambda: heard)


async def test_guests_stand_in_one_line(tmp_path: Path) -> None:
    async with staged(tmp_path, nothing) as stage:
        stage.driver._patient_types = (Gossip,)
        lines: set[bytes] = set()
        taken = stage.driver._some_patient

        def some_patient() -> "list[Pending]":
            lines.update(stage.driver._patient)
            return taken()

        stage.driver._some_patient = some_patient  # type: ignore[method-assign]
        for sender in (GUEST, b"h" * 32, PEER):
            stage.deliver(*(encode(Gossip(number)) for number in range(40)), sender=sender)
        await until(lambda: sum(isinstance(e, Received) for e in stage.machine.events) == 120)
        assert lines == {GUESTS, PEER}


async def test_timers_fire_once_in_order_and_not_when_cancelled(tmp_path: Path) -> None:
    fired: list[Hashable] = []
    clock = NetworkClock()

    def react(event: Event) -> Sequence[Effect]:
        now = clock.now_ms()
        match event:
            case Start():
                return [
                    SetTimer("late", now + 120),
                    SetTimer("early", now + 40),
                    SetTimer("moved", now + 20),
                    SetTimer("moved", now + 80),
                    SetTimer("gone", now + 60),
                    SetTimer("past", now - 1000),
                ]
            case TimerFired(name):
                fired.append(name)
                return [CancelTimer("gone")] if name == "early" else ()
        return ()

    async with staged(tmp_path, react):
        await until(lambda: len(fired) == 4)
        await asyncio.sleep(0.05)
        assert fired == ["past", "early", "moved", "late"]


async def test_a_timer_that_sets_itself_at_once_starves_nobody(tmp_path: Path) -> None:
    def react(event: Event) -> Sequence[Effect]:
        return [SetTimer("busy", 0)] if isinstance(event, Start | TimerFired) else ()

    async with staged(tmp_path, react) as stage:
        stage.deliver(encode(note(1)))
        await until(lambda: stage.machine.numbers() == [1])


async def test_rejections_logs_and_evidence_reach_the_host(tmp_path: Path) -> None:
    def react(event: Event) -> Sequence[Effect]:
        if not isinstance(event, Submitted):
            return ()
        return [
            Reject(PEER, "stale"),
            Log("warning", "odd", {"n": 1}),
            Misbehaviour(OTHER, "double-vote", note(1)),
        ]

    async with staged(tmp_path, react) as stage:
        stage.driver.submit([])
        stage.driver.submit([])
        await until(lambda: len(list(stage.store.scan(EVIDENCE))) == 2)
        assert stage.links.faults == [(PEER, "stale")] * 2
        assert stage.metrics.value("misbehaviour", kind="double-vote") == 2
    async with staged(tmp_path, react) as stage:
        stage.driver.submit([])
        await until(lambda: len(list(stage.store.scan(EVIDENCE))) == 3)


async def test_a_failing_machine_halts_and_nothing_more_leaves(tmp_path: Path) -> None:
    def react(event: Event) -> Sequence[Effect]:
        if isinstance(event, Submitted):
            return [Persist((Write("t", b"k", b"v"),)), Send(PEER, note(1))]
        if isinstance(event, PeerConnected):
            raise KeyError("bug")
        return ()

    stage = Stage(tmp_path, Script(react))
    task = asyncio.create_task(stage.driver.run())
    stage.driver.submit([])
    stage.driver.peer_connected(PEER)
    with pytest.raises(MachineHalted, match="Script halted during PeerConnected: KeyError: 'bug'"):
        await task
    await stage.store.drain()
    assert stage.links.left == []
    stage.store.close()


async def test_damage_found_by_the_machine_is_told_as_it_is(tmp_path: Path) -> None:
    def react(event: Event) -> Sequence[Effect]:
        raise LocalFault("the store is damaged")

    stage = Stage(tmp_path, Script(react))
    with pytest.raises(LocalFault, match="the store is damaged"):
        await stage.driver.run()
    stage.store.close()


async def test_a_failing_listener_of_commits_is_not_swallowed(tmp_path: Path) -> None:
    def react(event: Event) -> Sequence[Effect]:
        if isinstance(event, Submitted):
            return [Persist((Write("t", b"k", b"v"),)), Committed(1, None)]
        return ()

    stage = Stage(tmp_path, Script(react))

    def fail(effect: Committed) -> None:
        raise ValueError("listener")

    stage.driver._on_committed = fail
    task = asyncio.create_task(stage.driver.run())
    stage.driver.submit([])
    with pytest.raises(ValueError, match="listener"):
        await asyncio.wait_for(task, 5)
    stage.store.close()


async def test_too_many_submissions_are_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path, Script(nothing))
    for _ in range(4096):
        stage.driver.submit([])
    with pytest.raises(RemoteFault, match="busy"):
        stage.driver.submit([])
    stage.store.close()


def test_only_valid_signatures_are_remembered() -> None:
    class Counting:
        calls = 0

        def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
            self.calls += 1
            return signature == b"good"

    inner = Counting()
    verifier = CachingVerifier(inner, size=10)
    assert verifier.verify(b"k", b"m", b"good")
    assert verifier.verify(b"k", b"m", b"good")
    assert inner.calls == 1
    assert not verifier.verify(b"k", b"m", b"bad")
    assert not verifier.verify(b"k", b"m", b"bad")
    assert inner.calls == 3
    for number in range(100):
        verifier.verify(b"k", bytes((number,)), b"good")
    assert len(verifier._young) + len(verifier._old) <= 20


# -- kills -----------------------------------------------------------------------------------------

COUNTER = """
import asyncio, sys
from pathlib import Path
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.machine import *
from tests.unit.test_host_driver import *
from gridtokenx.host.crashpoints import arm_crash_points

async def main():
    arm_crash_points()
    stage = None
    def react(event):
        if not isinstance(event, TimerFired | Start):
            return ()
        last = stage.store.get("t", b"count")
        count = int.from_bytes(last or b"", "big") + 1
        return [
            Persist((Write("t", b"count", count.to_bytes(8, "big")),)),
            Send(PEER, note(count)),
            SetTimer("again", 0),
        ]
    stage = Stage(Path(sys.argv[1]), Script(react))
    def send(peer, channel, body):
        print(decode(body, Message).number, flush=True)
        return True
    from gridtokenx.core.codec import decode
    stage.links.send = send
    await stage.driver.run()

asyncio.run(main())
"""


KILLED_AT = (
    "driver.before_step",
    "driver.after_step",
    "driver.before_send",
    "storage.before_commit",
    "storage.inside_commit",
    "storage.after_commit",
)


@pytest.mark.parametrize("place", spread(KILLED_AT, 3))
def test_a_killed_process_never_sends_a_number_twice_nor_one_it_forgets(
    tmp_path: Path, place: str
) -> None:
    """Each number leaves at most once over many lives, and never before it is on disk."""
    sent: list[int] = []
    root = Path(__file__).parents[2]
    for _ in range(3):
        died = subprocess.run(
            [sys.executable, "-c", COUNTER, str(tmp_path)],
            env={**os.environ, "GTX_CRASH_AT": f"{place}:5", "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert died.returncode == 137, died.stderr
        sent += [int(line) for line in died.stdout.split()]
        store = Store.open(tmp_path)
        kept = int.from_bytes(store.get("t", b"count") or b"", "big")
        store.close()
        assert max(sent, default=0) <= kept
    assert sent == sorted(set(sent))


# -- clock -----------------------------------------------------------------------------------------


def test_network_time_is_wall_time_less_the_time_that_the_network_was_down() -> None:
    wall = [5_000_000]
    clock = NetworkClock(-3_600_000, lambda: wall[0])
    assert clock.now_ms() == 1_400_000
    wall[0] -= 10_000  # the wall clock is set back
    assert clock.now_ms() == 1_400_000
    wall[0] += 20_000
    assert clock.now_ms() == 1_410_000
