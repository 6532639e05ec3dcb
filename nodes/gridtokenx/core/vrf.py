"""Verifiable random function ECVRF-EDWARDS25519-SHA512-TAI (RFC 9381 §5), and the slot lottery.

Law of the file: **one key and one input have one output, which only the key's owner can compute and
everybody can check**. Group operations are libsodium's; this file is the RFC's arithmetic on them.
An Ed25519 seed is also the VRF's secret key, and the public keys coincide. One key for both is safe
as long as nobody signs the 32 bytes of a point, which would repeat a nonce; what we sign is longer
(domain tag, chain id, payload).

Ours differs from the RFC's verifier, on the strict side: a public key or Gamma with a component of
small order is refused outright (RFC 9381 §5.4.5 asks for that of the key only, and allows mixed
order). Honest keys and proofs have none; the output is unique either way.
"""

from functools import lru_cache
from hashlib import sha512
from typing import Final

from nacl import bindings, exceptions

SEED_BYTES: Final = 32
POINT_BYTES: Final = 32
CHALLENGE_BYTES: Final = 16
PROOF_BYTES: Final = 80
OUTPUT_BYTES: Final = 64

_SUITE: Final = b"\x03"
_FIELD: Final = 2**255 - 19
_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_IDENTITY: Final = b"\x01" + bytes(31)
_CHALLENGE_PADDING: Final = bytes(POINT_BYTES - CHALLENGE_BYTES)


def prove(seed: bytes, alpha: bytes) -> tuple[bytes, bytes]:
    """The proof (80 bytes) and the output (64 bytes) of `alpha` under the key of `seed` (§5.1).

    Args:
        seed: the 32-byte Ed25519 seed.
        alpha: the input, of any length.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    expanded = sha512(seed).digest()
    secret, nonce_key = _clamp(expanded[:32]), expanded[32:]
    public_key = bindings.crypto_scalarmult_ed25519_base_noclamp(secret)
    base = _hash_to_curve(public_key, alpha)
    gamma = bindings.crypto_scalarmult_ed25519_noclamp(secret, base)
    nonce = bindings.crypto_core_ed25519_scalar_reduce(sha512(nonce_key + base).digest())
    challenge = _challenge(
        public_key,
        base,
        gamma,
        bindings.crypto_scalarmult_ed25519_base_noclamp(nonce),
        bindings.crypto_scalarmult_ed25519_noclamp(nonce, base),
    )
    product = bindings.crypto_core_ed25519_scalar_mul(challenge + _CHALLENGE_PADDING, secret)
    response = bindings.crypto_core_ed25519_scalar_add(nonce, product)
    return gamma + challenge + response, _output(gamma)


def verify(public_key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
    """The output that `proof` shows for `alpha`, or None if it shows nothing (§5.3).

    Never raises on bad input. Keys of low order are refused: they would have one output that their
    owner need not work for.
    """
    if len(public_key) != POINT_BYTES or len(proof) != PROOF_BYTES:
        return None
    gamma, challenge, response = proof[:32], proof[32:48], proof[48:]
    if int.from_bytes(response, "little") >= _ORDER:
        return None
    if not (_is_prime_order(public_key) and _is_prime_order(gamma)):
        return None
    base = _hash_to_curve(public_key, alpha)
    padded = challenge + _CHALLENGE_PADDING
    try:
        u = bindings.crypto_core_ed25519_sub(
            bindings.crypto_scalarmult_ed25519_base_noclamp(response),
            bindings.crypto_scalarmult_ed25519_noclamp(padded, public_key),
        )
        v = bindings.crypto_core_ed25519_sub(
            bindings.crypto_scalarmult_ed25519_noclamp(response, base),
            bindings.crypto_scalarmult_ed25519_noclamp(padded, gamma),
        )
    except exceptions.RuntimeError:
        return None  # libsodium refuses to multiply by zero; no honest challenge or response is
    if _challenge(public_key, base, gamma, u, v) != challenge:
        return None
    return _output(gamma)


def _hash_to_curve(public_key: bytes, alpha: bytes) -> bytes:
    """Try-and-increment (§5.4.1.1): the first hash that is a point, times the cofactor.

    The cofactor is cleared by doublings. libsodium's scalar multiplication refuses points outside
    the prime-order subgroup, so it would skip candidates that the RFC takes.
    """
    for counter in range(256):
        text = _SUITE + b"\x01" + public_key + alpha + bytes([counter]) + b"\x00"
        candidate = sha512(text).digest()[:POINT_BYTES]
        if not _is_canonical(candidate):
            continue
        try:
            point = _times_cofactor(candidate)
        except exceptions.RuntimeError:
            continue  # not on the curve
        if point != _IDENTITY:
            return point
    raise AssertionError("256 hashes in a row that are no points: probability 2**-256")


def _is_canonical(point: bytes) -> bool:
    """Whether RFC 8032 §5.1.3 decodes it: libsodium's addition would also take y >= p and x = -0."""
    number = int.from_bytes(point, "little")
    y, sign = number & (2**255 - 1), number >> 255
    return y < _FIELD and not (sign and y in (1, _FIELD - 1))


def _is_prime_order(point: bytes) -> bool:
    """Canonical, on the curve, not of small order, and in the main subgroup."""
    return bool(bindings.crypto_core_ed25519_is_valid_point(point))


def _times_cofactor(point: bytes) -> bytes:
    for _ in range(3):
        point = bindings.crypto_core_ed25519_add(point, point)
    return point


def _challenge(*points: bytes) -> bytes:
    """The first 16 bytes over Y, H, Gamma, U and V (§5.4.3). Older drafts left out Y."""
    return sha512(_SUITE + b"\x02" + b"".join(points) + b"\x00").digest()[:CHALLENGE_BYTES]


def _output(gamma: bytes) -> bytes:
    """The proof's hash (§5.2)."""
    return sha512(_SUITE + b"\x03" + _times_cofactor(gamma) + b"\x00").digest()


def _clamp(scalar: bytes) -> bytes:
    """RFC 8032 §5.1.5: the secret scalar from the first half of the hashed seed."""
    return bytes([scalar[0] & 0xF8]) + scalar[1:31] + bytes([scalar[31] & 0x7F | 0x40])


# --- the slot lottery -----------------------------------------------------------------------------

LOTTERY_BYTES: Final = 16
LOTTERY_RANGE: Final = 2 ** (8 * LOTTERY_BYTES)
_BITS: Final = 256
"""Fractional bits of the intermediate results: 128 more than the threshold has."""


def lottery_draw(output: bytes) -> int:
    """The number in 0 .. 2**128-1 that an output draws; it wins if it is below the threshold."""
    return int.from_bytes(output[:LOTTERY_BYTES], "big")


@lru_cache(maxsize=1024)
def slot_threshold(numerator: int, denominator: int, weight: int, total: int) -> int:
    """``1 - (1 - c) ** (weight / total)`` times 2**128, rounded to nearest (BABE's primary slots).

    Raising to a power makes the chance independent of how a stake is split among keys.

    Args:
        numerator: of c, the chance that a slot has any primary author.
        denominator: of c.
        weight: the author's.
        total: of all authors.

    Returns:
        An integer in 0 .. 2**128, off the exact value by less than one: integers only, so every
        machine has the same.
    """
    if not (0 <= numerator <= denominator and 0 <= weight <= total and denominator and total):
        raise ValueError(
            f"a chance of {numerator}/{denominator} and a weight of {weight}/{total}: "
            "both must be fractions within 0 .. 1"
        )
    if numerator == 0 or weight == 0:
        return 0
    if numerator == denominator:
        return LOTTERY_RANGE
    exponent = _log(denominator, denominator - numerator) * weight // total
    chance = (1 << _BITS) - _exp_minus(exponent)
    shift = _BITS - 8 * LOTTERY_BYTES
    return (chance + (1 << (shift - 1))) >> shift


def _log(over: int, under: int) -> int:
    """``ln(over / under)`` in fixed point, for over >= under > 0."""
    twos = over.bit_length() - under.bit_length()
    if over < under << twos:
        twos -= 1
    return _log_below_two(over, under << twos) + (twos * _log_below_two(2, 1) if twos else 0)


def _log_below_two(over: int, under: int) -> int:
    """``2 artanh((over - under) / (over + under))``, for a quotient in 1 .. 2."""
    z = ((over - under) << _BITS) // (over + under)
    square = z * z >> _BITS
    result, power, odd = 0, z, 1
    while power:
        result += power // odd
        power = power * square >> _BITS
        odd += 2
    return 2 * result


def _exp_minus(exponent: int) -> int:
    """``e ** -exponent`` in fixed point, for exponent >= 0."""
    halvings, rest = divmod(exponent, _log_below_two(2, 1))
    term, result, k = 1 << _BITS, 1 << _BITS, 0
    while term:
        k += 1
        term = (term * rest >> _BITS) // k
        result += -term if k & 1 else term
    return result >> halvings
