"""Addresses: one key, one text; a mistyped one is never another account."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core import bech32m
from gridtokenx.core.addresses import BadAddress, address, parse_address
from gridtokenx.core.errors import RemoteFault

KEYS = st.binary(min_size=32, max_size=32)


@given(st.binary(max_size=40))
def test_bytes_round_trip(data: bytes) -> None:
    assert bech32m.decode(bech32m.encode("grid", data)) == ("grid", data)


@given(KEYS)
def test_keys_round_trip_in_either_case(key: bytes) -> None:
    text = address(key)
    assert text.startswith("grid1")
    assert len(text) == 63
    assert parse_address(text) == parse_address(text.upper()) == key


@given(KEYS, st.data())
def test_up_to_four_wrong_characters_are_noticed(key: bytes, data: st.DataObject) -> None:
    text = list(address(key))
    places = data.draw(st.sets(st.integers(5, len(text) - 1), min_size=1, max_size=4))
    for place in places:
        others = [c for c in bech32m.CHARSET if c != text[place]]
        text[place] = data.draw(st.sampled_from(others))
    with pytest.raises(BadAddress, match="checksum"):
        parse_address("".join(text))


@given(st.text(max_size=100))
def test_any_text_is_an_address_or_a_remote_fault(text: str) -> None:
    with pytest.raises(RemoteFault) as caught:
        parse_address(text)
    assert caught.value.reason == "bad-address"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (bech32m.encode("cosmos", bytes(32)), "starts with 'cosmos'"),
        (bech32m.encode("grid", bytes(20)), "holds 20 bytes"),
        (bech32m.encode_groups("grid", [0] * 51 + [1]), "padding"),
        (bech32m.encode_groups("grid", [0] * 54), "padding"),
        ("x" * 5000, "at most 90"),
    ],
)
def test_refusals_say_why(text: str, why: str) -> None:
    with pytest.raises(BadAddress, match=why) as caught:
        parse_address(text)
    assert len(str(caught.value)) < 300


def test_a_key_of_the_wrong_size_is_a_programmers_mistake() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        address(bytes(31))
