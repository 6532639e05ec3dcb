"""What one reading costs in each stage of an oracle node, measured alone in this process."""

import time
from collections.abc import Callable, Sequence

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.gridtime import INTERVAL_MS
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.interchain.apps.registry import (
    DeviceKind,
    DeviceRegistration,
    DeviceRegistrations,
)
from gridtokenx.ledger.readings import ReadingBatch, SubmitReading
from gridtokenx.ledger.runtime import Context, ExecutedBlock, Proposal
from gridtokenx.ledger.state import State
from gridtokenx.ledger.transactions import Transaction, sign_transaction
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_chain
from gridtokenx.oracle.process.carriers import unpack
from gridtokenx.oracle.process.intake import parse

OWNER = bytes(31) + b"\x01"


def stages(genesis: OracleGenesis, signers: Sequence[Ed25519Signer]) -> None:
    """Take a block's worth of readings through the stages and print the cost of one in each."""
    chain = oracle_chain(genesis, Ed25519Verifier())
    head = chain.ledger.genesis(genesis.clock.network_genesis_ms)
    stamp_ms = genesis.clock.grid_epoch_ms + INTERVAL_MS
    block_ms = genesis.clock.network_ms(stamp_ms)
    batch = DeviceRegistrations(
        registrations=tuple(
            DeviceRegistration(key, key, OWNER, 1, DeviceKind.METER, 10_000, 1, active=True)
            for key in sorted(one.public_key for one in signers)
        )[:128]
    )
    state = State(head.state)
    ctx = Context(genesis.chain_id, 1, 0, block_ms, state)
    chain.registry.apply(ctx, batch)
    head = _with(head, state)
    known = {each.device for each in batch.registrations}
    call = SubmitReading(stamp_ms, 100, 0, 0, 0, 0)
    mine = [one for one in signers if one.public_key in known]
    count = len(mine)
    print(f"one reading, each stage alone ({count} at a time):")
    readings = [sign_transaction(one, genesis.chain_id, 1, [call]).encoded for one in mine]
    _say("sign (the meter)", count, lambda: [_sign(one, call) for one in mine])
    packed = encode(ReadingBatch(readings=tuple(readings)))
    _say("unpack and parse", count, lambda: [parse(raw, None) for raw in unpack(packed)])
    parsed = [decode(raw, Transaction) for raw in readings]
    admit, opening = chain.ledger.admit, State(head.state)
    _say("admit", count, lambda: [admit(opening, each, block_ms) for each in parsed])
    verifier = Ed25519Verifier()
    _say("check the signature", count, lambda: [_verify(verifier, each) for each in parsed])
    proposal = Proposal(0, block_ms + 1_000)
    built, refused = chain.ledger.build(head, proposal, parsed)
    assert not refused, refused
    _say("build (the proposer)", count, lambda: chain.ledger.build(head, proposal, parsed))
    _say("execute (everybody else)", count, lambda: chain.ledger.execute(head, built.block))


def _sign(signer: Ed25519Signer, call: SubmitReading) -> Transaction:
    return sign_transaction(signer, bytes(32), 1, [call])


def _with(head: ExecutedBlock, state: State) -> ExecutedBlock:
    return ExecutedBlock(head.block, head.state.update(state.changes()), {}, ())


def _verify(verifier: Ed25519Verifier, transaction: Transaction) -> bool:
    check = transaction.signature_check()
    return verifier.verify(check.public_key, check.message, check.signature)


def _say(name: str, count: int, work: Callable[[], object]) -> None:
    best_s = float("inf")
    for _ in range(3):
        began_s = time.process_time()
        work()
        best_s = min(best_s, time.process_time() - began_s)
    print(f"    {name:<28} {1e6 * best_s / count:7.0f} us")
