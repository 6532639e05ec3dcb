"""Port ``transfer``: fungible tokens between chains, after ICS-20.

Law of the file: for every token, ``escrowed at home = minted away + in flight``, always; what is in
flight is the sum of open packets whose effect on the other side has not happened
(`interchain/audit.py` computes it over two chains).

A token keeps its home. Sent from home it is escrowed and the receiver mints a *voucher*, whose name
is the receiver's client of the home chain before the name that the sender uses: ``public/grid``. Sent
back, the voucher is burned and the escrow released. A refusal or a timeout undoes exactly what
sending did.

==============  =============================  ===============================
the token is    send (refund undoes it)        receive
==============  =============================  ===============================
ours            escrow                         release from escrow
theirs          burn the voucher               mint the voucher
==============  =============================  ===============================

What a compromised chain can take is bounded twice: by what was escrowed for its own client, and by
the limits per window.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.types import UINT63_MAX, Denom, Millis, PublicKey, ShortText, UInt63
from gridtokenx.core.units import checked_amount
from gridtokenx.interchain.module import Interchain
from gridtokenx.interchain.packets import Acknowledgement, ClientId, Packet, Refused, Sequence63
from gridtokenx.ledger.runtime import CallFailed, Context, Module, handles
from gridtokenx.ledger.state import Map, State
from gridtokenx.ledger.tokens import Tokens, module_account

PORT: Final = "transfer"
SEPARATOR: Final = "/"
MAX_DENOM: Final = 64
SEND_WEIGHT: Final = 50

Amount = Annotated[int, Meta(ge=1, le=UINT63_MAX)]


class FungibleTransfer(Wire, frozen=True, tag="transfer.tokens"):
    """The payload: who gives how much of what to whom."""

    denom: Denom
    """The token's name on the sending chain."""
    amount: Amount
    sender: PublicKey
    receiver: PublicKey


class SendTransfer(Wire, frozen=True, tag="transfer.send"):
    """Send tokens to an account on another chain."""

    client_id: ClientId
    """Our client of the other chain."""
    denom: Denom
    """The token's name here."""
    amount: Amount
    receiver: PublicKey
    timeout_ms: Millis
    """Network time after which the tokens come back instead."""


class TransferSent(Wire, frozen=True, tag="transfer.sent"):
    """Tokens left for another chain."""

    client_id: ClientId
    sequence: Sequence63
    denom: Denom
    amount: Amount
    sender: PublicKey
    receiver: PublicKey


class TransferReceived(Wire, frozen=True, tag="transfer.received"):
    """Tokens arrived from another chain."""

    client_id: ClientId
    sequence: Sequence63
    denom: Denom
    """The token's name here."""
    amount: Amount
    sender: PublicKey
    receiver: PublicKey


class TransferRefunded(Wire, frozen=True, tag="transfer.refunded"):
    """Tokens came back to their sender: refused over there, or timed out."""

    client_id: ClientId
    sequence: Sequence63
    denom: Denom
    amount: Amount
    sender: PublicKey
    reason: ShortText
    """"timeout", or the code of the refusal."""


class TransferLimit(Wire, frozen=True):
    """The most of a token that may pass by one client in one direction per window."""

    denom: Denom
    """The token's name here."""
    window_ms: Annotated[int, Meta(ge=1)]
    amount: UInt63


class Flow(Wire, frozen=True):
    """What passed in the current window."""

    window: UInt63
    """Block time // window length."""
    amount: UInt63


ESCROWED: Final = Map("transfer.escrowed", int)
"""(client, token of ours) -> held here for what circulates over there, or is in flight."""
MINTED: Final = Map("transfer.minted", int)
"""(client, voucher) -> in circulation here."""
FLOWS: Final = Map("transfer.flow", Flow)
"""(client, "in" or "out", token) -> what passed in the current window."""


class TransferApp(Module):
    """See the head of the file.

    Args:
        interchain: carries the packets; this app registers itself there.
        tokens: holds the balances.
        limits: per token; a token without one passes freely.
    """

    name = PORT
    port = PORT
    events = (TransferSent, TransferReceived, TransferRefunded)

    def __init__(
        self, interchain: Interchain, tokens: Tokens, limits: Sequence[TransferLimit] = ()
    ) -> None:
        self._interchain: Final = interchain
        self._tokens: Final = tokens
        self._limits: Final = {limit.denom: limit for limit in limits}
        interchain.register(self)

    # -- calls -------------------------------------------------------------------------------------

    @handles(SendTransfer, weight=SEND_WEIGHT)
    def send_transfer(self, ctx: Context, call: SendTransfer) -> None:
        """Escrow or burn, and commit to the packet that says so."""
        self._limit(ctx, call.client_id, "out", call.denom, call.amount)
        self._take(ctx.state, call.client_id, call.denom, ctx.sender, call.amount)
        payload = FungibleTransfer(
            denom=call.denom, amount=call.amount, sender=ctx.sender, receiver=call.receiver
        )
        sequence = self._interchain.send(
            ctx, call.client_id, PORT, encode(payload), call.timeout_ms
        )
        ctx.emit(
            TransferSent(
                client_id=call.client_id,
                sequence=sequence,
                denom=call.denom,
                amount=call.amount,
                sender=ctx.sender,
                receiver=call.receiver,
            )
        )

    # -- app ---------------------------------------------------------------------------------------

    def on_receive(self, ctx: Context, packet: Packet) -> bytes:
        """Release a token of ours that comes home, or mint a voucher of theirs."""
        sent = decode(packet.payload, FungibleTransfer)
        client = packet.destination_client
        denom = local_denom(packet, sent.denom)
        self._limit(ctx, client, "in", denom, sent.amount)
        self._give(ctx.state, client, denom, sent.receiver, sent.amount)
        ctx.emit(
            TransferReceived(
                client_id=client,
                sequence=packet.sequence,
                denom=denom,
                amount=sent.amount,
                sender=sent.sender,
                receiver=sent.receiver,
            )
        )
        return b""

    def on_acknowledge(self, ctx: Context, packet: Packet, ack: Acknowledgement) -> None:
        """Nothing is left to do for an accepted transfer; a refused one comes back."""
        if isinstance(ack, Refused):
            self._refund(ctx, packet, ack.code)

    def on_timeout(self, ctx: Context, packet: Packet) -> None:
        """The tokens come back."""
        self._refund(ctx, packet, "timeout")

    # -- laws --------------------------------------------------------------------------------------

    def check_invariants(self, state: State) -> Iterator[str]:
        """The escrow account covers the books, and vouchers exist only as booked."""
        escrowed: defaultdict[str, int] = defaultdict(int)
        for key, amount in ESCROWED.scan(state):
            client, denom = _two_texts(key)
            escrowed[denom] += amount
            held = self._tokens.balance(state, denom, escrow_account(client))
            if held < amount:
                yield f"{denom} by client {client}: {amount} escrowed, the account holds {held}"
        for key, amount in MINTED.scan(state):
            client, denom = _two_texts(key)
            supply = self._tokens.supply(state, denom)
            if supply != amount:
                yield f"{denom} by client {client}: {amount} minted, supply is {supply}"

    # -- parts -------------------------------------------------------------------------------------

    def _take(self, state: State, client: str, denom: str, sender: bytes, amount: int) -> None:
        """What sending does to the sender's tokens."""
        if is_voucher(client, denom):
            self._tokens.burn(state, denom, sender, amount)
            _book(state, MINTED, client, denom, -amount)
        else:
            self._tokens.move(state, denom, sender, escrow_account(client), amount)
            _book(state, ESCROWED, client, denom, amount)

    def _give(self, state: State, client: str, denom: str, receiver: bytes, amount: int) -> None:
        """The reverse of `_take`: for what arrives, and for what comes back."""
        if is_voucher(client, denom):
            self._tokens.mint(state, denom, receiver, amount)
            _book(state, MINTED, client, denom, amount)
        else:
            _book(state, ESCROWED, client, denom, -amount)
            self._tokens.move(state, denom, escrow_account(client), receiver, amount)

    def _refund(self, ctx: Context, packet: Packet, reason: str) -> None:
        sent = decode(packet.payload, FungibleTransfer)
        self._give(ctx.state, packet.source_client, sent.denom, sent.sender, sent.amount)
        ctx.emit(
            TransferRefunded(
                client_id=packet.source_client,
                sequence=packet.sequence,
                denom=sent.denom,
                amount=sent.amount,
                sender=sent.sender,
                reason=reason,
            )
        )

    def _limit(self, ctx: Context, client: str, way: str, denom: str, amount: int) -> None:
        """Count what passes against the token's limit; refunds do not pass here."""
        limit = self._limits.get(denom)
        if limit is None:
            return
        window = ctx.timestamp_ms // limit.window_ms
        flow = FLOWS.read(ctx.state, Flow(window=window, amount=0), client, way, denom)
        passed = amount + (flow.amount if flow.window == window else 0)
        if passed > limit.amount:
            raise CallFailed("transfer-limit", f"{limit.amount} {denom} per {limit.window_ms} ms")
        FLOWS.put(ctx.state, Flow(window=window, amount=passed), client, way, denom)


def escrow_account(client_id: str) -> bytes:
    """The account that holds what was sent by a client; nobody has its key."""
    return module_account(f"{PORT}/{client_id}")


def voucher(client_id: str, denom: str) -> str:
    """What a chain calls a token that its client `client_id`'s chain calls `denom`."""
    return f"{client_id}{SEPARATOR}{denom}"


def is_voucher(client_id: str, denom: str) -> bool:
    """Whether `denom` is a voucher for a token that lives beyond this client."""
    return denom.startswith(client_id + SEPARATOR)


def local_denom(packet: Packet, denom: str) -> str:
    """The receiver's name of what the sender calls `denom`.

    Raises:
        CallFailed: no token could have that name.
    """
    if is_voucher(packet.source_client, denom):
        name = denom[len(packet.source_client) + 1 :]
    else:
        name = voucher(packet.destination_client, denom)
    if not name or len(name) > MAX_DENOM:
        raise CallFailed("bad-denom", f"{denom!r} has no name here")
    return name


def _book(state: State, books: Map[int], client: str, denom: str, change: int) -> None:
    amount = books.read(state, 0, client, denom) + change
    if amount < 0:
        raise CallFailed("beyond-escrow", f"client {client!r} never brought that much {denom}")
    books.put(state, checked_amount(amount), client, denom)


def _two_texts(key: bytes) -> tuple[str, str]:
    """The two parts of a (client, denom) key."""
    client_end = 1 + key[0]
    return key[1:client_end].decode(), key[client_end + 1 :].decode()
