"""The module runtime: how transactions and hooks turn one state into the next.

Law of the file: **execution is a pure function of (parent, header inputs, transactions).** A call
that fails leaves no trace but its sender's nonce and fee. What is not an expected failure (a bug,
lack of memory) propagates and stops the node; it never becomes a result.

::

    begin_block hooks -> each transaction: admission.charge, then its calls -> end_block hooks

A module is a class with a name, typed stores, `@handles` methods, hooks, events and
`check_invariants`. Modules meet through references given to their constructors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import ClassVar, Final, Protocol, TypeVar

import msgspec

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.merkle import merkle_root
from gridtokenx.core.state_tree import StateTree
from gridtokenx.core.types import BLOB_MAX, Hash32, ShortText, Text
from gridtokenx.core.units import AmountError
from gridtokenx.ledger.blocks import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_TRANSACTIONS,
    NO_PARENT,
    PROTOCOL_VERSION,
    Block,
    EventRecord,
    Header,
    transaction_root,
)
from gridtokenx.ledger.state import BadKey, State
from gridtokenx.ledger.transactions import MAX_TRANSACTION_BYTES, Transaction, TransactionBody

MAX_BLOCK_WEIGHT: Final = 200_000
"""About one second of one replica's work, so a unit is about 5 us. A block that takes longer than its
view is given up, and its work done again."""
MAX_TRANSACTION_WEIGHT: Final = MAX_BLOCK_WEIGHT // 2
"""Whatever is admitted fits a block, and leaves room for others."""
MAX_MISFITS: Final = 64
"""So many candidates may find no room before a proposer takes its block for full."""
TRANSACTION_WEIGHT: Final = 50
"""Of every transaction, whatever it calls: its signature, its nonce, its fee and its receipt."""
DEFAULT_CALL_WEIGHT: Final = 10
NOBODY: Final = bytes(32)
"""`Context.sender` inside hooks."""


class CallFailed(Exception):
    """A call refuses: its writes and events are undone, the receipt carries `code`."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message


class InvalidBlock(RemoteFault):
    """A proposed block breaks a rule of the ledger; nobody may vote for it."""

    def __init__(self, detail: str) -> None:
        super().__init__("invalid-block", detail)


class InvalidTransaction(RemoteFault):
    """A transaction that could not be included as things stand."""


class CallResult(Wire, frozen=True):
    """How one call ended."""

    code: ShortText
    """"ok", or the reason of the refusal."""
    message: Text
    """What exactly was wrong; empty when ok."""


class Executed(Wire, frozen=True, tag="ledger.executed"):
    """A transaction was included; its receipt."""

    transaction_id: Hash32
    results: tuple[CallResult, ...]
    """One per call, in order."""


MAX_MESSAGE_BYTES: Final = 512
"""Of one call's refusal: the receipt of the most calls still fits an event record."""
OK: Final = CallResult(code="ok", message="")


@dataclass(slots=True)
class Context:
    """What a call or a hook may know, and where it may write."""

    chain_id: bytes
    height: int
    round: int
    timestamp_ms: int
    """Network time of the block being made."""
    state: State
    sender: bytes = NOBODY
    """The account that signed; `NOBODY` in hooks."""
    events: list[Wire] = field(default_factory=list)
    encoded_events: list[bytes] = field(default_factory=list)
    """The same as they are recorded."""

    def emit(self, event: Wire) -> None:
        """Record an event; undone if the call fails.

        Raises:
            CallFailed: it is larger than an event record may be.
        """
        encoded = encode(event)
        if len(encoded) > BLOB_MAX:
            raise CallFailed(
                "event-too-large", f"{type(event).__name__}: {len(encoded)} of {BLOB_MAX} bytes"
            )
        self.events.append(event)
        self.encoded_events.append(encoded)

    def mark(self) -> tuple[int, int]:
        """Where a call begins: what `undo` returns to."""
        return self.state.savepoint(), len(self.events)

    def undo(self, mark: tuple[int, int]) -> None:
        """Take back all writes and events since a mark."""
        savepoint, emitted = mark
        self.state.rollback(savepoint)
        del self.events[emitted:], self.encoded_events[emitted:]


class Module:
    """Base of all modules; see the head of the file."""

    name: ClassVar[str] = ""
    events: ClassVar[tuple[type[Wire], ...]] = ()

    def genesis(self, ctx: Context) -> None:
        """Write the opening state."""

    def begin_block(self, ctx: Context) -> None:
        """Run before the transactions of every block but genesis."""

    def end_block(self, ctx: Context) -> None:
        """Run after the transactions of every block but genesis."""

    def precheck(self, state: State, sender: bytes, call: Wire) -> None:
        """Refuse early what is sure to be useless (a pool rule, not a consensus rule).

        Raises:
            InvalidTransaction: the call is redundant or hopeless.
        """

    def check_invariants(self, state: State) -> Iterator[str]:  # noqa: ARG002 - a hook
        """A sentence for each law that does not hold; may walk the whole state."""
        yield from ()


Handler = Callable[[Context, Wire], None]
C = TypeVar("C", bound=Wire)
M = TypeVar("M", bound=Module)


def handles(
    call: type[C], *, weight: int = DEFAULT_CALL_WEIGHT
) -> Callable[[Callable[[M, Context, C], None]], Callable[[M, Context, C], None]]:
    """Mark a method as the handler of a call; `weight` bounds how many fit a block."""

    def mark(method: Callable[[M, Context, C], None]) -> Callable[[M, Context, C], None]:
        method.__handles__ = (call, weight)  # type: ignore[attr-defined]  # read by `Ledger`
        return method

    return mark


class Standing(msgspec.Struct, frozen=True):
    """How a sender stands after some block: what the pool asks."""

    next_nonce: int | None
    """Of its next transaction; None where nonces come in any order."""
    budget: int | None
    """What it can pay in fees, for all that is pending together; None where there are none."""


class Admission(Protocol):
    """A chain's rule of who may send what, in which order and for what fee."""

    def check(
        self, state: State, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """Whether the pool may take it, now or when its predecessors are in.

        Raises:
            InvalidTransaction: replayed, not allowed, or the fee is too low.
        """

    def ready(self, state: State, body: TransactionBody) -> bool:
        """Whether it could be included in the very next block."""
        ...

    def standing(self, state: State, sender: bytes) -> Standing:
        """How a sender stands, for the pool."""
        ...

    def charge(
        self, ctx: Context, body: TransactionBody, calls: Sequence[Wire], weight: int
    ) -> None:
        """Use up its nonce and take its fee; the only trace of a failing transaction.

        Raises:
            InvalidTransaction: it may not be included here: the block is invalid.
        """


@dataclass(frozen=True, slots=True)
class SetReference:
    """Which validator set finalises a block, and the hash of the one that finalises the next."""

    set_id: int
    next_set_hash: bytes


@dataclass(frozen=True, slots=True)
class Proposal:
    """What consensus adds to a block that is being built."""

    round: int
    timestamp_ms: int
    digest: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class ExecutedBlock:
    """A block with the state it leads to."""

    block: Block
    state: StateTree
    changes: dict[bytes, bytes | None]
    """What this block changed of its parent's state."""
    events: tuple[bytes, ...]
    """Encoded `EventRecord`s, the leaves under the header's event root."""
    height: int = field(init=False)
    """The block's height: every vote is compared with the head's."""

    def __post_init__(self) -> None:
        """Called when it is made."""
        object.__setattr__(self, "height", self.block.header.height)

    @property
    def header(self) -> Header:
        """The block's header."""
        return self.block.header

    @property
    def hash(self) -> bytes:
        """The block's hash."""
        return self.block.header.hash


class Ledger:
    """Modules and an admission rule, joined into one state-transition function.

    Args:
        chain_id: the chain's identity, in every header and signature.
        modules: in the order in which their hooks run.
        admission: who may send what.
        authorities: reads the validator set reference from the state after a block.
    """

    def __init__(
        self,
        chain_id: bytes,
        modules: Sequence[Module],
        admission: Admission,
        authorities: Callable[[State], SetReference],
    ) -> None:
        self.chain_id: Final = chain_id
        self.modules: Final = tuple(modules)
        self.admission: Final = admission
        self._authorities: Final = authorities
        self._handlers: Final[dict[type[Wire], tuple[Handler, int]]] = dict(_handlers(modules))
        self._owners: Final = {
            handler[0]: module for module in modules for handler in _calls_of(module)
        }
        self._call_union: Final = _union(tuple(self._handlers))
        events: list[type[Wire]] = [Executed]
        events += [event for module in modules for event in module.events]
        self.event_union: Final = _union(tuple(events))
        """The type that an event record's data decodes to on this chain."""

    # -- blocks ------------------------------------------------------------------------------------

    def genesis(self, timestamp_ms: int) -> ExecutedBlock:
        """Block 0: every module's opening state, no transactions."""
        state = State(StateTree.empty())
        ctx = Context(self.chain_id, 0, 0, timestamp_ms, state)
        for module in self.modules:
            module.genesis(ctx)
        root = transaction_root(())
        outcome = self._outcome(
            Proposal(0, timestamp_ms), 0, NO_PARENT, root, state, _records(0, ctx)
        )
        return outcome.of(Block(outcome.header, ()))

    def build(
        self, parent: ExecutedBlock, proposal: Proposal, candidates: Iterable[Transaction]
    ) -> tuple[ExecutedBlock, tuple[Transaction, ...]]:
        """A new block on `parent` of those candidates that may be included and fit.

        One that finds no room waits for the next block, as do its sender's later ones; smaller ones
        of others may still come in.

        Returns:
            The executed block, and the candidates that can not be included (the pool drops them).
        """
        run = _Run(self, parent, proposal)
        run.begin()
        included: list[Transaction] = []
        refused: list[Transaction] = []
        postponed: set[bytes] = set()
        misfits = 0
        for transaction in candidates:
            if misfits == MAX_MISFITS or len(included) == MAX_BLOCK_TRANSACTIONS:
                break
            if transaction.body.sender in postponed:
                continue
            try:
                run.apply(len(included) + 1, transaction, prechecked=True)
            except BlockFull:
                misfits += 1
                postponed.add(transaction.body.sender)
            except RemoteFault:
                refused.append(transaction)
            else:
                included.append(transaction)
        return run.made(tuple(included)), tuple(refused)

    def execute(self, parent: ExecutedBlock, block: Block) -> ExecutedBlock:
        """Re-run a proposed block.

        Raises:
            InvalidBlock: any rule broken, or an outcome that differs from the header's.
        """
        header = block.header
        _check_link(parent.header, block)
        run = _Run(self, parent, Proposal(header.round, header.timestamp_ms, header.digest))
        run.begin()
        for position, transaction in enumerate(block.transactions, start=1):
            try:
                run.apply(position, transaction, prechecked=False)
            except (RemoteFault, BlockFull) as fault:
                raise InvalidBlock(f"transaction {position - 1}: {fault}") from None
        return run.repeated(block)

    # -- transactions ------------------------------------------------------------------------------

    def admit(self, state: State, transaction: Transaction, now_ms: int) -> None:
        """Whether the pool may take a transaction whose signature was checked.

        Raises:
            RemoteFault: with the reason that the client is told.
        """
        body = transaction.body
        _check_size(transaction)
        calls = self.decode_calls(transaction)
        if body.valid_until_ms < now_ms:
            raise InvalidTransaction("expired", f"valid until {body.valid_until_ms}")
        root = state.root
        if root is not None and transaction.admitted_after == root:
            return
        self.admission.check(state, body, calls, self._bounded_weight(calls))
        self.precheck(state, body.sender, calls)
        transaction.admit_after(root)

    def decode_calls(self, transaction: Transaction) -> tuple[Wire, ...]:
        """The typed calls of a transaction for this chain.

        Raises:
            RemoteFault: another chain's, or a call that this chain does not have.
        """
        body = transaction.body
        if body.chain_id != self.chain_id:
            raise InvalidTransaction("wrong-chain", f"it is for {body.chain_id.hex()[:16]}")
        return transaction.typed_calls(self._call_union)

    def weight(self, calls: Iterable[Wire]) -> int:
        """Deterministic cost of one transaction of these calls."""
        handlers = self._handlers
        return TRANSACTION_WEIGHT + sum([handlers[type(call)][1] for call in calls])

    def _bounded_weight(self, calls: Sequence[Wire]) -> int:
        """The weight of one transaction; a heavier one would wait for room for ever."""
        weight = self.weight(calls)
        if weight > MAX_TRANSACTION_WEIGHT:
            raise InvalidTransaction(
                "too-heavy", f"it weighs {weight}, at most {MAX_TRANSACTION_WEIGHT} are allowed"
            )
        return weight

    def precheck(self, state: State, sender: bytes, calls: Iterable[Wire]) -> None:
        """Refuse a transaction of which every call is sure to be useless.

        One that is useful carries the others: a second relayer's batch may repeat some of the first's.

        Raises:
            RemoteFault: what is wrong with the first call.
        """
        problem: RemoteFault | None = None
        for call in calls:
            try:
                self._owners[type(call)].precheck(state, sender, call)
            except RemoteFault as fault:
                problem = problem or fault
            else:
                return
        if problem is not None:
            raise problem

    def call(self, ctx: Context, call: Wire) -> CallResult:
        """Carry out one call; on refusal nothing of it remains."""
        mark = ctx.mark()
        try:
            self._handlers[type(call)][0](ctx, call)
        except (CallFailed, AmountError, BadKey) as refusal:
            ctx.undo(mark)
            return CallResult(code=_code_of(refusal)[:64], message=_cut(str(refusal)))
        return OK

    def check_invariants(self, tree: StateTree) -> list[str]:
        """Every broken law of every module, prefixed by the module's name."""
        state = State(tree)
        return [
            f"{module.name}: {sentence}"
            for module in self.modules
            for sentence in module.check_invariants(state)
        ]

    def _outcome(
        self,
        proposal: Proposal,
        height: int,
        parent: bytes,
        transactions: bytes,
        state: State,
        records: list[bytes],
    ) -> "_Outcome":
        """What execution has led to; `transactions` is their root."""
        changes = state.changes()
        tree = state.tree.update(changes)
        reference = self._authorities(State(tree, changes))
        header = Header(
            version=PROTOCOL_VERSION,
            chain_id=self.chain_id,
            height=height,
            round=proposal.round,
            parent=parent,
            timestamp_ms=proposal.timestamp_ms,
            transaction_root=transactions,
            state_root=tree.root,
            event_root=merkle_root(records),
            set_id=reference.set_id,
            next_set_hash=reference.next_set_hash,
            digest=proposal.digest,
        )
        return _Outcome(header, tree, changes, tuple(records))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Everything that a block leads to, and the header that says so."""

    header: Header
    state: StateTree
    changes: dict[bytes, bytes | None]
    events: tuple[bytes, ...]

    def of(self, block: Block) -> ExecutedBlock:
        """The block with it."""
        return ExecutedBlock(block, self.state, self.changes, self.events)


class BlockFull(Exception):
    """A transaction does not fit the rest of the block, by bytes or by weight."""


class _Run:
    """One block being executed."""

    def __init__(self, ledger: Ledger, parent: ExecutedBlock, proposal: Proposal) -> None:
        self._ledger = ledger
        self._parent = parent.header
        self._proposal = proposal
        self._state = State(parent.state, parent.changes)
        self._records: list[bytes] = []
        self._weight = 0
        self._size = 0

    def _context(self, sender: bytes = NOBODY) -> Context:
        proposal = self._proposal
        return Context(
            self._ledger.chain_id,
            self._parent.height + 1,
            proposal.round,
            proposal.timestamp_ms,
            self._state,
            sender,
        )

    def begin(self) -> None:
        ctx = self._context()
        for module in self._ledger.modules:
            _run_hook(module.begin_block, ctx)
        self._records += _records(0, ctx)

    def apply(self, origin: int, transaction: Transaction, *, prechecked: bool) -> None:
        """Include one transaction.

        Raises:
            RemoteFault: it may not be included; the state is as before.
            BlockFull: it does not fit; likewise.
        """
        ledger, body = self._ledger, transaction.body
        size = _check_size(transaction)
        calls = ledger.decode_calls(transaction)
        if body.valid_until_ms < self._proposal.timestamp_ms:
            raise InvalidTransaction("expired", f"valid until {body.valid_until_ms}")
        if prechecked:
            ledger.precheck(self._state, body.sender, calls)
        weight = ledger._bounded_weight(calls)  # noqa: SLF001 - the run is the ledger's own
        if self._weight + weight > MAX_BLOCK_WEIGHT or self._size + size > MAX_BLOCK_BYTES:
            raise BlockFull
        savepoint = self._state.savepoint()
        ctx = self._context(body.sender)
        try:
            ledger.admission.charge(ctx, body, calls, weight)
        except RemoteFault:
            self._state.rollback(savepoint)
            raise
        self._weight += weight
        self._size += size
        results = tuple([ledger.call(ctx, call) for call in calls])
        ctx.emit(Executed(transaction_id=transaction.id, results=results))
        self._records += _records(origin, ctx)

    def made(self, transactions: tuple[Transaction, ...]) -> ExecutedBlock:
        """A new block of what was applied."""
        outcome = self._finish(transaction_root(transactions))
        return outcome.of(Block(outcome.header, transactions))

    def repeated(self, block: Block) -> ExecutedBlock:
        """A proposed block, all of which was applied.

        Raises:
            InvalidBlock: it leads to something else than its header says.
        """
        outcome = self._finish(block.transaction_root)
        if outcome.header != block.header:
            differences = _differences(outcome.header, block.header)
            raise InvalidBlock(f"re-execution differs in {differences}")
        return outcome.of(block)

    def _finish(self, transactions: bytes) -> _Outcome:
        ctx = self._context()
        for module in self._ledger.modules:
            _run_hook(module.end_block, ctx)
        self._records += _records(0, ctx)
        return self._ledger._outcome(  # noqa: SLF001 - the run is the ledger's own
            self._proposal,
            self._parent.height + 1,
            self._parent.hash,
            transactions,
            self._state,
            self._records,
        )


def _run_hook(hook: Callable[[Context], None], ctx: Context) -> None:
    """A refusal has nobody to be told to in a hook: it is a module's mistake, and stops the node."""
    try:
        hook(ctx)
    except CallFailed as refusal:
        raise AssertionError(f"{hook.__qualname__} refuses, which no hook may: {refusal}") from None


def _cut(message: str) -> str:
    return message.encode(errors="replace")[:MAX_MESSAGE_BYTES].decode(errors="ignore")


def _code_of(refusal: CallFailed | AmountError | BadKey) -> str:
    match refusal:
        case CallFailed(code=code):
            return code
        case BadKey(reason=reason):
            return reason
        case _:
            return "amount-out-of-range"


def _check_link(parent: Header, block: Block) -> None:
    header = block.header
    if header.version != PROTOCOL_VERSION:
        raise InvalidBlock(f"version {header.version}, this ledger runs {PROTOCOL_VERSION}")
    if (header.chain_id, header.height, header.parent) != (
        parent.chain_id,
        parent.height + 1,
        parent.hash,
    ):
        raise InvalidBlock(f"height {header.height} does not follow {parent.height} of this chain")
    if header.timestamp_ms <= parent.timestamp_ms:
        raise InvalidBlock("its timestamp does not exceed its parent's")
    if sum(len(transaction.encoded) for transaction in block.transactions) > MAX_BLOCK_BYTES:
        raise InvalidBlock(f"more than {MAX_BLOCK_BYTES} bytes of transactions")


def _check_size(transaction: Transaction) -> int:
    """The bytes of a transaction; a larger one could wait for room for ever."""
    size = len(transaction.encoded)
    if size > MAX_TRANSACTION_BYTES:
        raise InvalidTransaction(
            "too-large", f"{size} bytes, at most {MAX_TRANSACTION_BYTES} are allowed"
        )
    return size


def _differences(ours: Header, theirs: Header) -> str:
    return ", ".join(
        name for name in Header.__struct_fields__ if getattr(ours, name) != getattr(theirs, name)
    )


def _records(origin: int, ctx: Context) -> list[bytes]:
    return [encode(EventRecord(origin, data)) for data in ctx.encoded_events]


def _calls_of(module: Module) -> Iterator[tuple[type[Wire], int, Handler]]:
    for name in dir(type(module)):
        marked = getattr(getattr(type(module), name), "__handles__", None)
        if marked is not None:
            yield *marked, getattr(module, name)


def _handlers(modules: Iterable[Module]) -> Iterator[tuple[type[Wire], tuple[Handler, int]]]:
    seen: set[type[Wire]] = set()
    for module in modules:
        for call, weight, handler in _calls_of(module):
            if call in seen:
                raise AssertionError(f"two modules handle {call.__name__}")
            seen.add(call)
            yield call, (handler, weight)


def _union(types: tuple[type[Wire], ...]) -> type[Wire]:
    """The tagged union of `types`, as the decoder wants it."""
    return reduce(or_, types)
