"""What traitors of every engine have in common: a ring, a puppet around the real machine, and tricks.

Law of the file: **a traitor has its own key and those of its accomplices, and no other.** It says what
it wants to whom it wants; it cannot sign for an honest node. Inside runs the real machine, which keeps
it plausible; the puppet passes what that machine hears and says through tricks: those that need no
knowledge of the protocol are here, the others with their engine (`pbft/behaviours.py`,
`testnet/validators.py`).

Nodes are named by their index in the run, seats by their index in a set: a set may change.
"""

# ruff: noqa: ARG002, D102 - hooks are described once, in `AnyTrick`

import random
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from gridtokenx.core.codec import Wire
from gridtokenx.core.keys import Signer, sha256
from gridtokenx.core.machine import (
    Broadcast,
    Effect,
    Event,
    Instant,
    Machine,
    NodeId,
    Received,
    Send,
    SetTimer,
    SignatureCheck,
    Submitted,
    TimerFired,
    Unknown,
)
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.faults import Behave, RoundMutation

REMEMBERED: Final = 256
_VOLUNTEERS: Final = 0.05
"""In so many of its steps a traitor that may speak at any time does."""


@dataclass(frozen=True, slots=True)
class Saying:
    """One message on its way out, and for whom."""

    to: tuple[int, ...]
    message: Wire


class Member(Machine, Protocol):
    """What a puppet asks of the machine inside."""

    @property
    def validators(self) -> ValidatorSet:
        """The set that it works in."""
        ...


class Ring:
    """What the traitors of one chain share: keys, memory, and a draw.

    Args:
        validators: the chain's first set.
        signers: the traitors' keys, by the index of their nodes.
        chain_id: in every signature.
        draw: of everything that they do at random.
        keys: of all nodes by index, observers too; those of the set if None.
    """

    def __init__(
        self,
        validators: ValidatorSet,
        signers: Mapping[int, Signer],
        chain_id: bytes,
        draw: random.Random,
        keys: Sequence[NodeId] | None = None,
    ) -> None:
        self.keys: Final = tuple(keys if keys is not None else validators.members)
        self.nodes: Final = {key: index for index, key in enumerate(self.keys)}
        self.sets: Final = {validators.set_id: validators}
        """Every set that a traitor has worked in."""
        self.signers: Final = signers
        self.chain_id: Final = chain_id
        self.draw: Final = draw
        self.heard: Final[deque[Wire]] = deque(maxlen=REMEMBERED)
        self.deeds: Final[Counter[str]] = Counter()
        """How often each behaviour said something else than the machine inside."""

    def half(self) -> frozenset[int]:
        """A drawn half of the honest nodes."""
        honest = [i for i in range(len(self.keys)) if i not in self.signers]
        self.draw.shuffle(honest)
        return frozenset(honest[: (len(honest) + self.draw.randrange(2)) // 2])

    def note(self, message: Wire) -> None:
        """Remember what was said."""
        self.heard.append(message)

    def seat(self, index: int, set_id: int) -> int | None:
        """A node's index in a set; None if it has no seat there, as far as traitors know."""
        members = self.sets.get(set_id)
        return None if members is None else members.index_of(self.keys[index])

    def node(self, seat: int, set_id: int) -> int:
        """Whose seat that is."""
        return self.nodes[self.sets[set_id].members[seat]]

    def any_hash(self) -> bytes:
        """Of nothing."""
        return sha256(self.draw.randbytes(8))


M = TypeVar("M", bound=Member)
R = TypeVar("R", bound=Ring)


class AnyPuppet(Generic[M, R]):
    """A machine around the real one of a traitor.

    Args:
        inner: the real machine.
        index: of its node.
        conspiracy: its accomplices.
        tricks: what it does while they are active, in this order.
    """

    def __init__(
        self,
        inner: M,
        index: int,
        conspiracy: R,
        tricks: "Sequence[AnyTrick[Any, Any]]",  # of this kind of puppet, which is still open here
    ) -> None:
        self.inner: Final = inner
        self.index: Final = index
        self.conspiracy: Final = conspiracy
        self.others: Final = tuple(i for i in range(len(conspiracy.keys)) if i != index)
        self._tricks: Final = tricks
        self._held: dict[Hashable, Saying] = {}
        self._holds = 0

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        """See `Machine.verification`."""
        return self.inner.verification(message)

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:
        """See `Machine.step`: what the real machine hears and says passes through the tricks."""
        if isinstance(event, TimerFired) and event.name in self._held:
            return list(self._say(self._held.pop(event.name)))
        active = [trick for trick in self._tricks if trick.active]
        heard: Event | None = event
        if isinstance(event, Received):
            self.conspiracy.note(event.verified.message)
        for trick in active:
            heard = None if heard is None else trick.hear(heard)
        effects = [] if heard is None else self.inner.step(now, heard)
        members = self.inner.validators
        self.conspiracy.sets.setdefault(members.set_id, members)
        if not active:
            return effects
        out: list[Effect] = []
        for effect in effects:
            out.extend(self._pass(now, effect, active))
        for trick in active:
            for saying in trick.volunteer(self, now):
                self.conspiracy.deeds[trick.fault.behaviour] += 1
                out.extend(self._say(saying))
        return out

    @property
    def seat(self) -> int | None:
        """Its index in the set that it works in; None without a seat."""
        return self.inner.validators.index_of(self.conspiracy.keys[self.index])

    def hold(self, now: Instant, saying: Saying, delay_ms: int) -> Effect:
        """Say it later."""
        self._holds += 1
        name = ("held", self._holds)
        self._held[name] = saying
        return SetTimer(name, now + delay_ms)

    def _pass(
        self, now: Instant, effect: Effect, active: "Sequence[AnyTrick[Any, Any]]"
    ) -> Iterator[Effect]:
        if isinstance(effect, Broadcast):
            sayings = [Saying(self.others, effect.message)]
        elif isinstance(effect, Send):
            index = self.conspiracy.nodes.get(effect.to)
            if index is None:
                yield effect
                return
            sayings = [Saying((index,), effect.message)]
        else:
            yield effect
            return
        for trick in active:
            before = sayings
            if isinstance(trick, Late):
                for saying in sayings:
                    if trick.concerns(saying.message):
                        yield self.hold(now, saying, trick.fault.delay_ms)
                sayings = [saying for saying in sayings if not trick.concerns(saying.message)]
            else:
                sayings = [new for old in sayings for new in trick.say_some(self, old)]
            if len(sayings) != len(before) or any(
                new is not old for new, old in zip(sayings, before, strict=True)
            ):
                self.conspiracy.deeds[trick.fault.behaviour] += 1
        for saying in sayings:
            yield from self._say(saying)

    def _say(self, saying: Saying) -> Iterator[Effect]:
        if saying.to == self.others:
            yield Broadcast(saying.message)
            return
        for index in saying.to:
            yield Send(self.conspiracy.keys[index], saying.message)


P = TypeVar("P", bound=AnyPuppet[Any, Any])


class AnyTrick(Generic[P, R]):
    """Base of all behaviours: does nothing.

    Args:
        fault: from the manifest.
        conspiracy: shared with the other traitors.
    """

    def __init__(self, fault: Behave, conspiracy: R) -> None:
        self.fault: Final = fault
        self.conspiracy: Final = conspiracy
        self.draw: Final = conspiracy.draw
        self.active = False
        self.victims: Final = frozenset(fault.victims) or conspiracy.half()

    def concerns(self, message: Wire) -> bool:
        """Whether the fault is about messages of this kind."""
        kinds = self.fault.messages
        return not kinds or type(message).__name__ in kinds

    def hear(self, event: Event) -> Event | None:
        """What the real machine hears instead."""
        return event

    def say_some(self, puppet: P, saying: Saying) -> Iterable[Saying]:
        """`say`, for the share of opportunities that it uses."""
        if not self.concerns(saying.message):
            return [saying]
        if self.fault.share < 1 and self.draw.random() >= self.fault.share:
            return [saying]
        return self.say(puppet, saying)

    def say(self, puppet: P, saying: Saying) -> Iterable[Saying]:
        """What is said instead."""
        return [saying]

    def volunteer(self, puppet: P, now: Instant) -> Iterable[Saying]:
        """What is said beside."""
        return ()

    def split(self, saying: Saying, message: Wire) -> list[Saying]:
        """The victims get `message`, the rest what was meant."""
        wronged = tuple(i for i in saying.to if i in self.victims)
        rest = tuple(i for i in saying.to if i not in self.victims)
        return [Saying(rest, saying.message), Saying(wronged, message)]

    def sometimes(self) -> bool:
        """Whether a volunteer speaks now."""
        return self.draw.random() < _VOLUNTEERS * self.fault.share


T = TypeVar("T", bound=AnyTrick[Any, Any])


class AnyTraitors(Generic[T]):
    """The traitors of one chain, and what each does.

    Args:
        tricks: with the faults that they come from, which name nodes by their index on this chain.
    """

    def __init__(self, tricks: Iterable[tuple[Behave | RoundMutation, T]]) -> None:
        self._tricks: Final = tuple(tricks)

    def tricks_of(self, index: int) -> list[T]:
        """What a node does, in the order of the manifest."""
        return [trick for fault, trick in self._tricks if fault.node == index]

    def switch(self, fault: Behave | RoundMutation, *, active: bool) -> None:
        """Switch a behaviour on or off."""
        for known, trick in self._tricks:
            if known is fault:
                trick.active = active


# -- tricks that any machine can play --------------------------------------------------------------


class Late(AnyTrick[P, R]):
    """delay; the puppet holds what it says."""


class Silent(AnyTrick[P, R]):
    """silent."""

    def say(self, puppet: P, saying: Saying) -> Iterable[Saying]:
        return ()


class SelectiveSilence(AnyTrick[P, R]):
    """selective-silence."""

    def say(self, puppet: P, saying: Saying) -> Iterable[Saying]:
        return [Saying(tuple(i for i in saying.to if i not in self.victims), saying.message)]


class Censor(AnyTrick[P, R]):
    """censor."""

    def hear(self, event: Event) -> Event | None:
        if not isinstance(event, Submitted) and not _passed_on(event):
            return event
        self.conspiracy.deeds[self.fault.behaviour] += 1
        return None


class Replay(AnyTrick[P, R]):
    """replay."""

    def volunteer(self, puppet: P, now: Instant) -> Iterable[Saying]:
        if self.conspiracy.heard and self.sometimes():
            yield Saying(puppet.others, self.draw.choice(self.conspiracy.heard))


def _passed_on(event: Event) -> bool:
    """Whether it is transactions that somebody passes on; both engines call that by one name."""
    return isinstance(event, Received) and type(event.verified.message).__name__ == "Transactions"
