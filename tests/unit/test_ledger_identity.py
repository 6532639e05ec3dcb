"""A chain's id is the hash of its genesis; an edited genesis is refused."""

import msgspec
import pytest

from gridtokenx.core.errors import LocalFault
from gridtokenx.ledger.identity import (
    UNNAMED,
    check_chain_id,
    derive_chain_id,
    parse_genesis,
    render_genesis,
)


class Genesis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chain_id: bytes
    clients: tuple[str, ...]
    seats: int


class Other(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chain_id: bytes
    clients: tuple[str, ...]
    seats: int


def named(genesis: Genesis) -> Genesis:
    return msgspec.structs.replace(genesis, chain_id=derive_chain_id(genesis))


def test_clients_do_not_change_the_id_but_all_else_does() -> None:
    one = named(Genesis(UNNAMED, (), 4))
    assert derive_chain_id(Genesis(UNNAMED, ("oracle",), 4)) == one.chain_id
    assert derive_chain_id(Genesis(UNNAMED, (), 5)) != one.chain_id
    assert derive_chain_id(Other(UNNAMED, (), 4)) != one.chain_id
    check_chain_id(one, "memory")


def test_a_file_reads_back_and_an_edited_one_does_not() -> None:
    data = render_genesis(named(Genesis(UNNAMED, ("oracle",), 4)))
    assert parse_genesis(data, Genesis, "file").seats == 4
    with pytest.raises(LocalFault, match="changed after it was made"):
        parse_genesis(data.replace(b'"seats": 4', b'"seats": 5'), Genesis, "file")
    for garbage in (b"", b"{}", b"\xff", b'{"chain_id": 3}'):
        with pytest.raises(LocalFault, match="not a Genesis"):
            parse_genesis(garbage, Genesis, "file")
