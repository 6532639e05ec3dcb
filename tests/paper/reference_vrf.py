"""RFC 9381's ECVRF-EDWARDS25519-SHA512-TAI in plain integers, slow and obvious.

Written from the RFCs (8032 for the curve), on nothing but `hashlib`: the other side of every
comparison with the implementation on libsodium.
"""

from hashlib import sha512

P = 2**255 - 19
Q = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)

Point = tuple[int, int]
IDENTITY: Point = (0, 1)


def add(a: Point, b: Point) -> Point:
    product = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + product, -1, P) % P
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P) % P
    return x, y


def negate(a: Point) -> Point:
    return -a[0] % P, a[1]


def multiply(n: int, a: Point) -> Point:
    """Double and add, in homogeneous coordinates so that only the end needs a division."""
    result, power = (0, 1, 1), (a[0], a[1], 1)
    while n:
        if n & 1:
            result = _add_homogeneous(result, power)
        power, n = _add_homogeneous(power, power), n >> 1
    scale = pow(result[2], -1, P)
    return result[0] * scale % P, result[1] * scale % P


def _add_homogeneous(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    """The law of `add` with each coordinate over a common denominator."""
    z, x, y = a[2] * b[2] % P, a[0] * b[0] % P, a[1] * b[1] % P
    square, product = z * z % P, D * x * y % P
    over, under = square - product, square + product
    cross = (a[0] * b[1] + a[1] * b[0]) % P
    return z * over * cross % P, z * under * (y + x) % P, over * under % P


def encode_point(a: Point) -> bytes:
    return (a[1] | (a[0] & 1) << 255).to_bytes(32, "little")


def decode_point(data: bytes) -> Point | None:
    """RFC 8032 §5.1.3."""
    number = int.from_bytes(data, "little")
    y, sign = number & (2**255 - 1), number >> 255
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * ROOT % P
    if x * x % P != square or (x == 0 and sign):
        return None
    return (P - x if x & 1 != sign else x), y


BASE = decode_point(bytes.fromhex("58" + "66" * 31))
assert BASE is not None


def public_key(seed: bytes) -> bytes:
    return encode_point(multiply(_secret(seed), BASE))


def prove(seed: bytes, alpha: bytes, *, draft: bool = False) -> tuple[bytes, int]:
    """§5.1: the proof, and the counter that hashing to the curve needed.

    With `draft`, the challenge of the drafts before the RFC, which left out the public key.
    """
    x = _secret(seed)
    key = multiply(x, BASE)
    h, counter = hash_to_curve(encode_point(key), alpha)
    gamma = multiply(x, h)
    k = int.from_bytes(sha512(sha512(seed).digest()[32:] + encode_point(h)).digest(), "little") % Q
    points = [key, h, gamma, multiply(k, BASE), multiply(k, h)]
    c = challenge(points[1:] if draft else points)
    s = (k + int.from_bytes(c, "little") * x) % Q
    return encode_point(gamma) + c + s.to_bytes(32, "little"), counter


def verify(key: bytes, alpha: bytes, proof: bytes) -> bytes | None:
    """§5.3, with the key validated as §5.4.5 says."""
    y, gamma = decode_point(key), decode_point(proof[:32])
    if len(proof) != 80 or y is None or gamma is None or multiply(8, y) == IDENTITY:
        return None
    c, s = int.from_bytes(proof[32:48], "little"), int.from_bytes(proof[48:], "little")
    if s >= Q:
        return None
    h, _ = hash_to_curve(key, alpha)
    u = add(multiply(s, BASE), negate(multiply(c, y)))
    v = add(multiply(s, h), negate(multiply(c, gamma)))
    if challenge([y, h, gamma, u, v]) != proof[32:48]:
        return None
    return sha512(b"\x03\x03" + encode_point(multiply(8, gamma)) + b"\x00").digest()


def hash_to_curve(key: bytes, alpha: bytes) -> tuple[Point, int]:
    """§5.4.1.1."""
    for counter in range(256):
        digest = sha512(b"\x03\x01" + key + alpha + bytes([counter]) + b"\x00").digest()
        point = decode_point(digest[:32])
        if point is not None and multiply(8, point) != IDENTITY:
            return multiply(8, point), counter
    raise AssertionError


def challenge(points: list[Point]) -> bytes:
    """§5.4.3."""
    text = b"\x03\x02" + b"".join(map(encode_point, points)) + b"\x00"
    return sha512(text).digest()[:16]


def _secret(seed: bytes) -> int:
    number = int.from_bytes(sha512(seed).digest()[:32], "little")
    return number & ((1 << 254) - 8) | 1 << 254
