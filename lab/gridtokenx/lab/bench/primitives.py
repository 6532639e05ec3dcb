"""The hot primitives, each beside the plain operation that bounds it from below."""

import hashlib
import time
from collections.abc import Callable

from gridtokenx.core.codec import decode, encode
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.core.state_tree import StateTree
from gridtokenx.core.vrf import prove, verify
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction

KEYS = 100_000
UPDATES = 6_000
SIGNER = Ed25519Signer(bytes(range(32)))


def run() -> None:
    """Time each primitive and print it beside its reference."""
    _state_tree()
    _signatures()
    _codec()


def _state_tree() -> None:
    tree = StateTree.empty().update({b"key %d" % n: b"value %d" % n for n in range(KEYS)})
    changes = {b"key %d" % (n * 7 % KEYS): b"new %d" % n for n in range(UPDATES)}
    update_s = _seconds(lambda: tree.update(changes))
    hash_s = _seconds(
        lambda: [hashlib.sha256(key + value).digest() for key, value in changes.items()]
    )
    _row(f"state tree: {UPDATES} updates of {KEYS} keys", update_s, "hashing just those", hash_s)
    key = b"key 5"
    proof = tree.prove(key)
    _row(
        "state tree: one proof",
        _seconds(lambda: tree.prove(key), 1_000),
        "one lookup",
        _seconds(lambda: tree.get(key), 1_000),
    )
    print(f"    a proof has {len(encode(proof))} bytes")


def _signatures() -> None:
    verifier, message = Ed25519Verifier(), bytes(200)
    signature = SIGNER.sign(message)
    check_s = _seconds(lambda: verifier.verify(SIGNER.public_key, message, signature), 300)
    sign_s = _seconds(lambda: SIGNER.sign(message), 300)
    _row("Ed25519: one check", check_s, "one signature", sign_s)
    seed = bytes(range(32))
    proof, _ = prove(seed, b"slot")
    _row(
        "VRF: one check",
        _seconds(lambda: verify(SIGNER.public_key, b"slot", proof), 50),
        "one Ed25519 check",
        check_s,
    )


def _codec() -> None:
    calls = [Transfer(denom="GRID", to=bytes(32), amount=1)]
    transaction = sign_transaction(SIGNER, bytes(32), 1, calls)
    raw = encode(transaction)
    _row(
        "codec: decode a transaction canonically",
        _seconds(lambda: decode(raw, Transaction), 3_000),
        "encode it",
        _seconds(lambda: encode(transaction), 3_000),
    )


def _seconds(work: Callable[[], object], repeat: int = 1) -> float:
    """The best of five, per repetition."""
    best = float("inf")
    for _ in range(5):
        started_s = time.perf_counter()
        for _ in range(repeat):
            work()
        best = min(best, time.perf_counter() - started_s)
    return best / repeat


def _row(name: str, measured_s: float, reference_name: str, reference_s: float) -> None:
    print(
        f"{name:<44} {measured_s * 1e6:12.1f} us   {reference_name} {reference_s * 1e6:.1f} us"
        f"   ratio {measured_s / reference_s:.1f}"
    )
