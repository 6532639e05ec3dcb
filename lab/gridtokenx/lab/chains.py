"""The three chains as the lab handles them: read a genesis, get a ledger and its validators."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from gridtokenx.consortium.chain import ConsortiumGenesis, consortium_ledger
from gridtokenx.core.errors import LocalFault
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.identity import parse_genesis
from gridtokenx.ledger.runtime import ExecutedBlock, Ledger
from gridtokenx.oracle.chain.ledger import OracleGenesis, oracle_ledger
from gridtokenx.public.chain import PublicGenesis, public_ledger

G = TypeVar("G", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain put together from its genesis file."""

    name: str
    ledger: Ledger
    validators: ValidatorSet
    genesis: ExecutedBlock


def load_chain(name: str, genesis_path: Path) -> Chain:
    """Read the genesis file of a chain and put it together.

    Raises:
        LocalFault: a genesis that is unreadable, of another chain, or could not work.
    """
    return _MAKERS[name](name, _read(genesis_path), str(genesis_path))


def recognise_chain(genesis_path: Path) -> Chain:
    """Put together whichever chain a genesis file is of.

    Raises:
        LocalFault: it is unreadable, or of none of the three chains.
    """
    data = _read(genesis_path)
    for name, make in _MAKERS.items():
        with contextlib.suppress(LocalFault):
            return make(name, data, str(genesis_path))
    raise LocalFault(f"genesis {genesis_path}: is of none of the chains {', '.join(_MAKERS)}")


def _read(genesis_path: Path) -> bytes:
    try:
        return genesis_path.read_bytes()
    except OSError as error:
        raise LocalFault(f"genesis {genesis_path}: cannot be read: {error.strerror}") from None


def _maker(type_: type[G], ledger_of: Callable[[G], Ledger]) -> Callable[[str, bytes, str], Chain]:
    def make(name: str, data: bytes, source: str) -> Chain:
        genesis: Any = parse_genesis(data, type_, source)  # the three share these fields by custom
        ledger = ledger_of(genesis)
        block = ledger.genesis(genesis.clock.network_genesis_ms)
        return Chain(name, ledger, genesis.validator_set, block)

    return make


_MAKERS: Final[dict[str, Callable[[str, bytes, str], Chain]]] = {
    "public": _maker(PublicGenesis, public_ledger),
    "consortium": _maker(ConsortiumGenesis, consortium_ledger),
    "oracle": _maker(OracleGenesis, oracle_ledger),
}
