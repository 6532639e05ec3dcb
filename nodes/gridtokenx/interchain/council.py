"""The chain's own members decide what no proof can: to recover a client, and to stop in an emergency.

Law of the file: **a decision needs a quorum of the accounts that make up the chain's validator set**,
counted when it takes effect. A member has one voice per subject and may change it. No packet and no
hook can vote: they have no sender.

=================  ===================================  ===================  =====================
subject            choice                               takes effect         only while
=================  ===================================  ===================  =====================
a client           the hash of a header of its chain    by `RecoverClient`,  it is frozen, or its
                                                        after the delay      trusting period is over
pause              stop, or go on                       at quorum            it changes something
=================  ===================================  ===================  =====================

A frozen client believes nothing, and what is open by it can neither end nor be refunded; an expired
one can end what its recorded headers prove, and no more. Which of two certified histories is the
chain's is a judgement about people and machines, so members make it, outside, and say it here as one
header: it names, by its hash, the set that certifies what follows. Everything recorded before is
dropped, since it may stem from the other history; nothing is lost by that, because commitments,
receipts and acknowledgements stay provable under later headers.

The delay (a fourteenth of the trusting period: a day of two weeks) is counted from the moment of
quorum, and lets everybody else look at what was chosen. Whatever happens to the client meanwhile
voids all voices: they were about another situation.
"""

from collections.abc import Sequence
from typing import Final

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import sha256
from gridtokenx.core.types import Hash32, Height, Index16, Millis, PublicKey
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain import clients, stores, voting
from gridtokenx.interchain.packets import ClientId
from gridtokenx.interchain.voting import Ballot, MembersOf, Voice
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.runtime import (
    NOBODY,
    CallFailed,
    Context,
    InvalidTransaction,
    Module,
    handles,
)
from gridtokenx.ledger.state import Map, State

DELAYS_PER_PERIOD: Final = 14
"""The delay of a recovery is the client's trusting period divided by this."""
APPROVE_WEIGHT: Final = 50
RECOVER_WEIGHT: Final = 500
"""Drops up to 128 headers and their sets."""
PAUSE: Final = "pause"
"""The subject of the emergency stop; clients have subjects of their own."""


class ApproveRecovery(Wire, frozen=True, tag="interchain.approve_recovery"):
    """A member's voice for the header from which a client is to go on."""

    client_id: ClientId
    header_hash: Hash32


class RecoverClient(Wire, frozen=True, tag="interchain.recover_client"):
    """Carry out what a quorum approved; by anyone."""

    client_id: ClientId
    header: Header
    """The header that was approved."""
    validators: ValidatorSet
    """The set that it names as certifying what follows."""


class ApprovePause(Wire, frozen=True, tag="interchain.approve_pause"):
    """A member's voice for stopping all packets, or for going on."""

    paused: bool


class RecoveryApproved(Wire, frozen=True, tag="interchain.recovery_approved"):
    """A member approved a header."""

    client_id: ClientId
    header_hash: Hash32
    member: PublicKey
    approvals: Index16
    """How many members stand for it now."""
    due_ms: Millis | None
    """Network time from which it may take effect; None below quorum."""


class ClientRecovered(Wire, frozen=True, tag="interchain.client_recovered"):
    """A client goes on from a header that its chain's members vouch for, not a certificate."""

    client_id: ClientId
    height: Height
    header_hash: Hash32


class PauseChanged(Wire, frozen=True, tag="interchain.pause_changed"):
    """The emergency stop began or ended."""

    paused: bool


CALLS: Final = (ApproveRecovery, RecoverClient, ApprovePause)


BALLOTS: Final = Map("interchain.ballot", Ballot)
"""(`PAUSE`, or "client", client) -> the voices."""


class Council(Module):
    """See the head of the file.

    Args:
        members: see `MembersOf`.
    """

    name = "council"
    events = (RecoveryApproved, ClientRecovered, PauseChanged)

    def __init__(self, members: MembersOf) -> None:
        self._members: Final = members

    def is_member(self, state: State, account: bytes) -> bool:
        """Whether an account has a voice."""
        return account != NOBODY and account in self._members(state)

    def are_members_calls(self, state: State, sender: bytes, calls: Sequence[Wire]) -> bool:
        """Whether a transaction is a member's part in a decision: chains may take it without fee."""
        return all(isinstance(call, CALLS) for call in calls) and self.is_member(state, sender)

    # -- calls -------------------------------------------------------------------------------------

    @handles(ApproveRecovery, weight=APPROVE_WEIGHT)
    def approve_recovery(self, ctx: Context, call: ApproveRecovery) -> None:
        """Count a member's voice for a header."""
        self._require_member(ctx)
        client = _impaired(ctx.state, call.client_id, ctx.timestamp_ms)
        subject = ("client", call.client_id)
        ballot = self._voice(ctx, subject, _situation(client), call.header_hash)
        agreed = ballot.agreed == call.header_hash
        ctx.emit(
            RecoveryApproved(
                client_id=call.client_id,
                header_hash=call.header_hash,
                member=ctx.sender,
                approvals=voting.count(ballot, self._members(ctx.state))[call.header_hash],
                due_ms=ballot.agreed_ms + _delay_ms(client) if agreed else None,
            )
        )

    @handles(RecoverClient, weight=RECOVER_WEIGHT)
    def recover_client(self, ctx: Context, call: RecoverClient) -> None:
        """Let a client go on from the approved header."""
        client = _impaired(ctx.state, call.client_id, ctx.timestamp_ms)
        self._require_due(ctx, client, call.header.hash)
        try:
            clients.check_recovery(client, call.header, call.validators, ctx.timestamp_ms)
        except RemoteFault as fault:
            raise CallFailed(fault.reason, fault.detail) from None
        BALLOTS.delete(ctx.state, "client", call.client_id)
        stores.restart_client(ctx.state, client, clients.recorded(call.header), call.validators)
        ctx.emit(
            ClientRecovered(
                client_id=call.client_id,
                height=call.header.height,
                header_hash=call.header.hash,
            )
        )

    @handles(ApprovePause, weight=APPROVE_WEIGHT)
    def approve_pause(self, ctx: Context, call: ApprovePause) -> None:
        """Count a member's voice for stopping, or for going on."""
        self._require_member(ctx)
        now, wanted = _choice(paused=stores.PAUSED.get(ctx.state)), _choice(paused=call.paused)
        ballot = self._voice(ctx, (PAUSE,), now, wanted)
        if ballot.agreed == wanted != now:
            BALLOTS.delete(ctx.state, PAUSE)
            stores.PAUSED.put(ctx.state, call.paused)
            ctx.emit(PauseChanged(paused=call.paused))

    def precheck(self, state: State, sender: bytes, call: Wire) -> None:
        """Keep what cannot change anything out of the pool and of new blocks."""
        match call:
            case ApproveRecovery():
                said = _said(state, sender, call.header_hash, "client", call.client_id)
            case ApprovePause():
                said = _said(state, sender, _choice(paused=call.paused), PAUSE)
            case RecoverClient():
                if not _is_agreed(state, call):
                    raise InvalidTransaction("not-approved", f"client {call.client_id!r}")
                return
            case _:
                return
        if not self.is_member(state, sender):
            raise InvalidTransaction("not-a-member", f"account {sender.hex()[:16]} has no voice")
        if said:
            raise InvalidTransaction("redundant", "you stand for that already")

    # -- parts -------------------------------------------------------------------------------------

    def _require_member(self, ctx: Context) -> None:
        if not self.is_member(ctx.state, ctx.sender):
            raise CallFailed("not-a-member", f"account {ctx.sender.hex()[:16]} has no voice here")

    def _voice(
        self, ctx: Context, subject: tuple[str, ...], situation: bytes, choice: bytes
    ) -> Ballot:
        """Put the sender's voice into a ballot, and see what is agreed now."""
        ballot = BALLOTS.get(ctx.state, *subject)
        if ballot is None or ballot.situation != situation:
            ballot = voting.empty_ballot(situation)
        members = self._members(ctx.state)
        voice = Voice(ctx.sender, choice)
        ballot = voting.with_voice(ballot, members, voice, ctx.timestamp_ms)
        BALLOTS.put(ctx.state, ballot, *subject)
        return ballot

    def _require_due(self, ctx: Context, client: clients.ClientState, choice: bytes) -> None:
        ballot = _live_ballot(ctx.state, "client", client.client_id)
        if ballot is None:
            raise CallFailed("not-approved", "no voices for recovering this client as it stands")
        if not ballot.agreed == choice == voting.agreed(ballot, self._members(ctx.state)):
            raise CallFailed("not-approved", f"no quorum stands for header {choice.hex()[:16]}")
        due_ms = ballot.agreed_ms + _delay_ms(client)
        if ctx.timestamp_ms < due_ms:
            raise CallFailed("not-due", f"from {due_ms} ms on, now {ctx.timestamp_ms} ms")


def _impaired(state: State, client_id: str, now_ms: int) -> clients.ClientState:
    """A client that cannot help itself.

    Raises:
        CallFailed: unknown, or in good health: its certificates alone decide then.
    """
    client = stores.CLIENTS.get(state, client_id)
    if client is None:
        raise CallFailed("unknown-client", f"this chain has no client {client_id!r}")
    if not client.frozen and not clients.is_expired(client, now_ms):
        raise CallFailed("client-healthy", f"{client_id} is neither frozen nor expired")
    return client


def _situation(client: clients.ClientState) -> bytes:
    return sha256(b"recovery of ", encode(client))


def _choice(*, paused: bool) -> bytes:
    return sha256(b"stop" if paused else b"go on")


def _said(state: State, sender: bytes, choice: bytes, *subject: str) -> bool:
    """Whether a voice is heard already."""
    ballot = _live_ballot(state, *subject)
    return ballot is not None and Voice(sender, choice) in ballot.voices


def _is_agreed(state: State, call: RecoverClient) -> bool:
    ballot = _live_ballot(state, "client", call.client_id)
    return ballot is not None and ballot.agreed == call.header.hash


def _live_ballot(state: State, *subject: str) -> Ballot | None:
    """A ballot about the situation as it is."""
    ballot = BALLOTS.get(state, *subject)
    if ballot is None or subject[0] == PAUSE:
        return ballot
    client = stores.CLIENTS.get(state, subject[1])
    return ballot if client is not None and ballot.situation == _situation(client) else None


def _delay_ms(client: clients.ClientState) -> int:
    return client.trusting_period_ms // DELAYS_PER_PERIOD
