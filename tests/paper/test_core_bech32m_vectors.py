"""BIP-350's test vectors."""

import pytest

from gridtokenx.core import bech32m

VALID = [
    "A1LQFN3A",
    "a1lqfn3a",
    "an83characterlonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11sg7hg6",
    "abcdef1l7aum6echk45nj3s0wdvt2fg8x9yrzpqzd3ryx",
    "11llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllludsr8",
    "split1checkupstagehandshakeupstreamerranterredcaperredlc445v",
    "?1v759aa",
]

INVALID = [
    ("\x201xj0phk", "outside printable ASCII"),
    ("\x7f1g6xzxy", "outside printable ASCII"),
    ("\x801vctc34", "outside printable ASCII"),
    (
        "an84characterslonghumanreadablepartthatcontainsthetheexcludedcharactersbioandnumber11d6pts4",
        "at most 90",
    ),
    ("qyrz8wqd2c9m", "no prefix"),
    ("1qyrz8wqd2c9m", "no prefix"),
    ("y1b0jsk6g", "'b' is not used"),
    ("lt1igcx5c0", "'i' is not used"),
    ("in1muywd", "fewer than 6"),
    ("mm1crxm3i", "'i' is not used"),
    ("au1s5cgom", "'o' is not used"),
    ("M1VUXWEZ", "checksum"),
    ("16plkw9", "no prefix"),
    ("1p2gdwpf", "no prefix"),
]

WITNESSES = [
    (
        "bc1pw508d6qejxtdg4y5r3zarvary0c5xw7kw508d6qejxtdg4y5r3zarvary0c5xw7kt5nd6y",
        1,
        "751e76e8199196d454941c45d1b3a323f1433bd6751e76e8199196d454941c45d1b3a323f1433bd6",
    ),
    ("BC1SW50QGDZ25J", 16, "751e"),
    ("bc1zw508d6qejxtdg4y5r3zarvaryvaxxpcs", 2, "751e76e8199196d454941c45d1b3a323"),
    (
        "tb1pqqqqp399et2xygdj5xreqhjjvcmzhxw4aywxecjdzew6hylgvsesf3hn0c",
        1,
        "000000c4a5cad46221b2a187905e5266362b99d5e91c6ce24d165dab93e86433",
    ),
    (
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
        1,
        "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
    ),
]

OLDER_BECH32 = [
    "A12UEL5L",
    "abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw",
    "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w",
    "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
]


@pytest.mark.parametrize("text", VALID)
def test_valid_text_round_trips(text: str) -> None:
    assert bech32m.encode_groups(*bech32m.decode_groups(text)) == text.lower()


@pytest.mark.parametrize(("text", "why"), INVALID)
def test_invalid_text_is_refused_and_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bech32m.decode_groups(text)


@pytest.mark.parametrize(("text", "version", "program"), WITNESSES)
def test_witness_programs(text: str, version: int, program: str) -> None:
    """BIP-350's addresses: one group of witness version, then the program's bytes."""
    prefix, groups = bech32m.decode_groups(text)
    assert groups[0] == version
    rest = bech32m.encode_groups(prefix, groups[1:])
    assert bech32m.decode(rest) == (prefix, bytes.fromhex(program))


@pytest.mark.parametrize("text", OLDER_BECH32)
def test_the_older_checksum_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="checksum"):
        bech32m.decode_groups(text)
