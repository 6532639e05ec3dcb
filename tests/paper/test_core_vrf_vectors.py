"""RFC 9381 Appendix B.3 (examples 16 to 18), and libsodium against plain integers."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.paper import reference_vrf as plain
from tests.stages import examples

from gridtokenx.core import vrf
from gridtokenx.core.keys import Ed25519Signer

EXAMPLES = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        0,
        (
            "8657106690b5526245a92b003bb079ccd1a92130477671f6fc01ad16f26f723f26f8a57ccaed74ee1b190bed1f"
            "479d9727d2d0f9b005a6e456a35d4fb0daab1268a1b0db10836d9826a528ca76567805"
        ),
        (
            "90cf1df3b703cce59e2a35b925d411164068269d7b2d29f3301c03dd757876ff66b71dda49d2de59d034504"
            "51af026798e8f81cd2e333de5cdf4f3e140fdd8ae"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        1,
        (
            "f3141cd382dc42909d19ec5110469e4feae18300e94f304590abdced48aed5933bf0864a62558b3ed7f2fea45c"
            "92a465301b3bbf5e3e54ddf2d935be3b67926da3ef39226bbc355bdc9850112c8f4b02"
        ),
        (
            "eb4440665d3891d668e7e0fcaf587f1b4bd7fbfe99d0eb2211ccec90496310eb5e33821bc613efb94db5e5b54c"
            "70a848a0bef4553a41befc57663b56373a5031"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        0,
        (
            "9bc0f79119cc5604bf02d23b4caede71393cedfbb191434dd016d30177ccbf8096bb474e53895c362d8628ee9f"
            "9ea3c0e52c7a5c691b6c18c9979866568add7a2d41b00b05081ed0f58ee5e31b3a970e"
        ),
        (
            "645427e5d00c62a23fb703732fa5d892940935942101e456ecca7bb217c61c452118fec1219202a0edcf038bb6"
            "373241578be7217ba85a2687f7a0310b2df19f"
        ),
    ),
]
SEEDS = st.binary(min_size=32, max_size=32)
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize(("seed", "key", "alpha", "counter", "proof", "output"), EXAMPLES)
def test_examples(seed: str, key: str, alpha: str, counter: int, proof: str, output: str) -> None:
    made, drawn = vrf.prove(bytes.fromhex(seed), bytes.fromhex(alpha))
    assert (made.hex(), drawn.hex()) == (proof, output)
    assert vrf.verify(bytes.fromhex(key), bytes.fromhex(alpha), made) == drawn
    assert plain.prove(bytes.fromhex(seed), bytes.fromhex(alpha)) == (made, counter)
    assert Ed25519Signer(bytes.fromhex(seed)).public_key.hex() == key


@pytest.mark.parametrize(("seed", "key", "alpha", "counter", "proof", "output"), EXAMPLES)
def test_the_drafts_proof_without_the_key_in_its_challenge_is_refused(
    seed: str, key: str, alpha: str, counter: int, proof: str, output: str
) -> None:
    """Libraries that follow an older draft have the same Gamma and output, and another tail."""
    draft, _ = plain.prove(bytes.fromhex(seed), bytes.fromhex(alpha), draft=True)
    assert draft.hex()[:64] == proof[:64]
    assert draft.hex()[64:] != proof[64:]
    assert vrf.verify(bytes.fromhex(key), bytes.fromhex(alpha), draft) is None


def test_the_draft_is_the_one_found_in_the_wild() -> None:
    seed = bytes.fromhex(EXAMPLES[0][0])
    assert plain.prove(seed, b"", draft=True)[0].hex()[64:72] == "5e8bd183"


def test_random_inputs_agree_with_plain_integers() -> None:
    """Among 60 inputs the counter passes 0, 1, 2 and more: every path of try-and-increment."""
    source, counters = random.Random(9381), set()
    for _ in range(60):
        seed, alpha = source.randbytes(32), source.randbytes(source.randrange(80))
        expected, counter = plain.prove(seed, alpha)
        counters.add(counter)
        proof, output = vrf.prove(seed, alpha)
        assert proof == expected
        key = plain.public_key(seed)
        assert vrf.verify(key, alpha, proof) == output == plain.verify(key, alpha, proof)
    assert counters >= {0, 1, 2}


@settings(max_examples=examples(40))
@given(SEEDS, st.binary(max_size=40), st.integers(0, 80 * 8 - 1))
def test_one_flipped_bit_proves_nothing(seed: bytes, alpha: bytes, bit: int) -> None:
    key, (proof, _) = plain.public_key(seed), vrf.prove(seed, alpha)
    flipped = (int.from_bytes(proof, "little") ^ 1 << bit).to_bytes(80, "little")
    assert vrf.verify(key, alpha, flipped) is None
    assert plain.verify(key, alpha, flipped) is None
    assert vrf.verify(key, alpha + b"x", proof) is None
    assert vrf.verify(plain.public_key(bytes([seed[0] ^ 1]) + seed[1:]), alpha, proof) is None


@settings(max_examples=examples(200))
@given(st.binary(max_size=64), st.binary(max_size=8), st.binary(max_size=100))
def test_any_bytes_are_refused_without_an_exception(key: bytes, alpha: bytes, proof: bytes) -> None:
    assert vrf.verify(key, alpha, proof) is None


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_keys_and_gammas_of_small_order_are_refused(key: str) -> None:
    point = bytes.fromhex(key)
    assert vrf.verify(point, b"slot", point + bytes(48)) is None
    assert vrf.verify(point, b"slot", vrf.prove(bytes(32), b"slot")[0]) is None
    good = plain.public_key(bytes(32))
    assert vrf.verify(good, b"slot", point + bytes(48)) is None


def test_a_forged_proof_for_the_identity_as_key() -> None:
    """With the key of order one anyone can answer every challenge: it must not count."""
    key = (1).to_bytes(32, "little")
    base, _ = plain.hash_to_curve(key, b"slot")
    k = 12345
    points = [plain.IDENTITY, base, plain.IDENTITY]
    points += [plain.multiply(k, plain.BASE), plain.multiply(k, base)]
    proof = key + plain.challenge(points) + k.to_bytes(32, "little")
    assert vrf.verify(key, b"slot", proof) is None


def test_a_gamma_with_a_small_component_is_refused() -> None:
    """The strict side of the deviation: the RFC takes one in eight of these, with the same output."""
    seed, torsion = bytes(32), plain.decode_point(bytes.fromhex(SMALL_ORDER[4]))
    assert torsion is not None
    x = plain._secret(seed)
    key = plain.multiply(x, plain.BASE)
    found = None
    for k in range(1, 200):
        base, _ = plain.hash_to_curve(plain.encode_point(key), b"slot")
        gamma = plain.add(plain.multiply(x, base), torsion)
        points = [key, base, gamma, plain.multiply(k, plain.BASE), plain.multiply(k, base)]
        challenge = plain.challenge(points)
        if challenge[0] % 8 == 0:
            response = (k + int.from_bytes(challenge, "little") * x) % plain.Q
            found = plain.encode_point(gamma) + challenge + response.to_bytes(32, "little")
            break
    assert found is not None
    encoded = plain.encode_point(key)
    assert plain.verify(encoded, b"slot", found) == vrf.prove(seed, b"slot")[1]
    assert vrf.verify(encoded, b"slot", found) is None


def test_a_response_beyond_the_order_is_refused() -> None:
    """Else one proof would have several encodings (RFC 9381 §5.3 step 5)."""
    proof, _ = vrf.prove(bytes(32), b"slot")
    beyond = int.from_bytes(proof[48:], "little") + plain.Q
    forged = proof[:48] + beyond.to_bytes(32, "little")
    assert vrf.verify(plain.public_key(bytes(32)), b"slot", forged) is None


def test_decoding_is_as_strict_as_rfc_8032() -> None:
    """libsodium's addition also takes y >= p and a negative zero; hashing to the curve must not."""
    for y, sign, good in [
        (1, 0, True),
        (1, 1, False),
        (plain.P - 1, 1, False),
        (plain.P, 0, False),
    ]:
        data = (y | sign << 255).to_bytes(32, "little")
        assert vrf._is_canonical(data) is good
        assert (plain.decode_point(data) is not None) is good


def test_a_seed_of_the_wrong_size_is_a_programmers_mistake() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        vrf.prove(bytes(31), b"")
