"""Replicas that are broken on purpose: what the simulator must find, to be believed when it finds nothing.

Each is the real replica with one rule left out or bent, and the sweep that catches it is a test
(`tests/simulation/test_sim_variants.py`).
"""

# ruff: noqa: D102 - each class says which rule it breaks

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.machine import (
    Broadcast,
    Effect,
    Event,
    Instant,
    Send,
    SignatureCheck,
    Unknown,
)
from gridtokenx.finality.certificates import CommitCertificate, IndexedSignature
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Block
from gridtokenx.ledger.runtime import ExecutedBlock, InvalidBlock, Proposal
from gridtokenx.pbft.log import Slot
from gridtokenx.pbft.messages import NewView, PreparedCertificate, ViewChange
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.requests import Application
from gridtokenx.pbft.terms import Term
from gridtokenx.pbft.turn import Turn
from gridtokenx.pbft.view_change import Choice, choose


class FewVotes(ValidatorSet, frozen=True, dict=True):
    """A set that 2f + 1 votes are enough of."""

    @cached_property
    def quorum(self) -> int:
        """Too few where n is not 3f + 1."""
        return 2 * self.faulty + 1


def few_votes(validators: ValidatorSet) -> ValidatorSet:
    """The same set, counted by 2f + 1."""
    return FewVotes(validators.set_id, validators.members)


class TwoFPlusOne(Replica):
    """Counts 2f + 1 votes as enough whatever n is (sawtooth-pbft): two such sets may share no honest one."""

    def _work_in(self, term: Term) -> None:
        for known in (*self._terms.values(), term):
            counted = Term(validators=few_votes(known.validators), root=known.root)
            self._terms[known.set_id] = counted
        super()._work_in(self._terms[term.set_id])


class NoPrepared(Replica):
    """Leaves a view without saying what it prepared: the new view may decide something else."""

    def prepared_above_head(self) -> tuple[PreparedCertificate, ...]:
        return ()


class SendsFirst(Replica):
    """Sends before it writes: a crash in between leaves a replica that forgot what it promised."""

    def step(self, now: Instant, event: Event) -> Sequence[Effect]:
        effects = super().step(now, event)
        return sorted(effects, key=lambda effect: not isinstance(effect, Send | Broadcast))


class ForgetsMarks(Replica):
    """Restarted, it knows neither its votes nor the signer's high-water marks: it votes anew."""

    def _restore_votes(self) -> None:
        memory = self._journal.views()
        self._views.view, self._views.active = memory.record.view, memory.record.active
        self._signer._marks.clear()  # noqa: SLF001 - a broken replica breaks its own parts


class WeakCommit(Replica):
    """Believes f + 1 commits: one honest replica's word, where a quorum's is needed."""

    def _commit_next(self, turn: Turn) -> bool:
        slot = self._log.find(self._head.height + 1)
        if slot is not None and (certificate := self._weak_certificate(slot)) is not None:
            executed = slot.executed.get(certificate.vote.block_hash)
            if executed is not None:
                self._commit(turn, executed, certificate)
                return True
        return super()._commit_next(turn)

    def _weak_certificate(self, slot: Slot) -> CommitCertificate | None:
        votes = [commit.vote for commit in slot.commits.values()]
        for vote in votes:
            matching = [(i, c) for i, c in sorted(slot.commits.items()) if c.vote == vote]
            if len(matching) > self._validators.faulty:
                signed = tuple(IndexedSignature(i, commit.signature) for i, commit in matching)
                return CommitCertificate(self._chain_id, vote, signed)
        return None


class NoSilenceTimer(Replica):
    """Waits for clients to complain: a silent leader with nothing to do is never noticed (RFC 29)."""

    def _set_silence(self, turn: Turn) -> None:
        """No timer."""

    def _on_request_timer(self, turn: Turn) -> None:
        """Nor for requests."""


class NoRequestTimer(Replica):
    """Does not mind what a leader leaves out: one that proposes empty blocks leads for ever."""

    def _on_request_timer(self, turn: Turn) -> None:
        """Nobody waits for anything."""


class NeverCatchesUp(Replica):
    """Asks nobody for the blocks that it missed."""

    def _fetch(self, turn: Turn) -> None:
        """It waits for them to come by themselves."""


class TrustsNewView(Replica):
    """Takes a new view's proposals as they are, instead of choosing again from its view-changes (4.4)."""

    def _on_new_view(self, turn: Turn, message: NewView) -> None:
        body, views = message.body, self._views
        if self._is_past(body.view) or (body.view == views.view and views.active):
            return
        choice = choose([change.body for change in body.view_changes], self._term.root)
        self._enter(turn, message, Choice(choice.base, choice.headers[: len(body.proposals)]))


class BelievesCertificates(Replica):
    """Checks who sends a view-change, and not the certificates in it."""

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        checks = super().verification(message)
        if isinstance(checks, Unknown) or not isinstance(message, ViewChange | NewView):
            return checks
        return checks[:1]


class SaysItOnce(Replica):
    """Never repeats its view-change: one lost message, and a view never opens (fabric #1917)."""

    def _resend(self, turn: Turn) -> None:
        turn.broadcast(self._status())


class NoPatience(Replica):
    """Timeouts do not grow: on a network slower than the timeout no view lives long enough."""

    def _leave(self, turn: Turn, view: int) -> bool:
        left = super()._leave(turn, view)
        self._views.attempts = 0
        return left


class _Credulous:
    """An `Application` that takes a header's word where execution gives something else."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self.chain_id = application.chain_id
        self.admission = application.admission
        self.build = application.build
        self.admit = application.admit
        self.decode_calls = application.decode_calls
        self.weight = application.weight

    def execute(self, parent: ExecutedBlock, block: Block) -> ExecutedBlock:
        try:
            return self._application.execute(parent, block)
        except InvalidBlock:
            proposal = Proposal(block.header.round, block.header.timestamp_ms)
            ours, _ = self._application.build(parent, proposal, block.transactions)
            return ExecutedBlock(block, ours.state, ours.changes, ours.events)


class BelievesLeader(Replica):
    """Votes for a block whatever its execution gives: a leader may invent the state."""

    def _restore_head(self) -> None:
        self._application = _Credulous(self._application)  # type: ignore[misc]  # Final there
        super()._restore_head()


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to be wrong."""

    name: str
    about: str
    replica: type[Replica] = Replica
    rule: Callable[[ValidatorSet], ValidatorSet] = lambda validators: validators
    """How it counts a set's votes; the checkers count so too, and look for what follows from it."""


def _about(type_: type) -> str:
    return (type_.__doc__ or "").strip().splitlines()[0]


def _variant(name: str, replica: type[Replica]) -> Variant:
    return Variant(name, _about(replica), replica)


VARIANTS: Final = {
    variant.name: variant
    for variant in (
        Variant("", "the real replica"),
        Variant("two-f-plus-one", _about(TwoFPlusOne), TwoFPlusOne, few_votes),
        _variant("no-prepared", NoPrepared),
        _variant("sends-first", SendsFirst),
        _variant("forgets-marks", ForgetsMarks),
        _variant("weak-commit", WeakCommit),
        _variant("believes-leader", BelievesLeader),
        _variant("trusts-new-view", TrustsNewView),
        _variant("believes-certificates", BelievesCertificates),
        _variant("never-catches-up", NeverCatchesUp),
        _variant("no-silence-timer", NoSilenceTimer),
        _variant("no-request-timer", NoRequestTimer),
        _variant("says-it-once", SaysItOnce),
        _variant("no-patience", NoPatience),
    )
}


def variant_named(name: str) -> Variant:
    """The variant of a manifest.

    Raises:
        LocalFault: there is none of this name.
    """
    found = VARIANTS.get(name)
    if found is None:
        raise LocalFault(f"chain.variant = {name!r}: known: {', '.join(filter(None, VARIANTS))}")
    return found
