"""One value has one encoding; everything else is refused with a reason."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import Malformed
from gridtokenx.core.types import Blob, Hash32, ShortText, UInt63


class Sample(Wire, frozen=True):
    key: Hash32
    amount: UInt63
    note: ShortText
    parts: tuple[Blob, ...]


class Left(Wire, frozen=True, tag="test.left"):
    value: UInt63


class Right(Wire, frozen=True, tag="test.right"):
    value: UInt63


samples = st.builds(
    Sample,
    key=st.binary(min_size=32, max_size=32),
    amount=st.integers(0, 2**63 - 1),
    note=st.text(max_size=20),
    parts=st.lists(st.binary(max_size=40), max_size=4).map(tuple),
)


@given(samples)
def test_round_trip_and_the_reference_package_reads_the_same(sample: Sample) -> None:
    data = encode(sample)
    assert decode(data, Sample) == sample
    plain = msgpack.unpackb(data)
    assert plain == [sample.key, sample.amount, sample.note, list(sample.parts)]
    assert msgpack.packb(plain) == data


@given(samples, st.data())
def test_any_other_bytes_are_refused_or_another_value(sample: Sample, data: st.DataObject) -> None:
    raw = bytearray(encode(sample))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    try:
        value = decode(bytes(raw), Sample)
    except Malformed:
        return
    assert value != sample
    assert encode(value) == bytes(raw)


@pytest.mark.parametrize(
    "plain",
    [
        [bytes(32), 1, "x"],
        [bytes(32), 1, "x", [], 0],
        [bytes(31), 1, "x", []],
        [bytes(32), -1, "x", []],
        [bytes(32), 2**63, "x", []],
        [bytes(32), 1.0, "x", []],
        [bytes(32), 1, b"x", []],
        [bytes(32), 1, "x" * 65, []],
        {"key": bytes(32)},
        None,
    ],
)
def test_out_of_shape_or_bounds_is_malformed(plain: object) -> None:
    with pytest.raises(Malformed):
        decode(msgpack.packb(plain), Sample)


def test_a_longer_encoding_of_the_same_integer_is_refused() -> None:
    canonical = encode(Left(value=1))
    assert canonical.endswith(b"\x01")
    with pytest.raises(Malformed, match="canonical"):
        decode(canonical[:-1] + b"\xcc\x01", Left)


def test_trailing_bytes_and_oversize_are_refused() -> None:
    data = encode(Left(value=1))
    with pytest.raises(Malformed):
        decode(data + b"\x00", Left)
    with pytest.raises(Malformed, match="at most 3"):
        decode(data, Left, limit=3)


def test_a_tagged_union_decodes_to_the_right_struct() -> None:
    assert decode(encode(Right(value=3)), Left | Right) == Right(value=3)  # type: ignore[arg-type]
    with pytest.raises(Malformed):
        decode(encode(Right(value=3)), Left)


def test_deep_nesting_is_malformed_not_a_crash() -> None:
    with pytest.raises(Malformed):
        decode(b"\x91" * 100_000 + b"\xc0", Sample)
