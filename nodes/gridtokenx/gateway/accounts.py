"""What an account has, read from state with proofs; the index is not asked.

Balances are read when somebody asks, all keys of a chain under one final header, and each value comes
with a proof of presence or of absence. `prove` hands all of it on, so that a reader needs to trust
nobody: header, certificate, and the proof of every key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gridtokenx.consortium.custody import WATT_DENOM
from gridtokenx.consortium.market.module import COLLATERAL
from gridtokenx.consortium.settlement.module import BOND
from gridtokenx.core.codec import encode
from gridtokenx.gateway.facts import CONSORTIUM, PUBLIC
from gridtokenx.gateway.ports import ChainSource, ProvedState
from gridtokenx.interchain.apps.transfer import SEPARATOR
from gridtokenx.ledger.state import Map
from gridtokenx.ledger.tokens import Tokens
from gridtokenx.public import rec
from gridtokenx.public.staking import GRID_DENOM, PURPOSE

_TOKENS: Final = Tokens()
"""Only its stores are used: they know the keys."""
_NONCES: Final = Map("account.nonce", int)
_CERTIFIED: Final = rec.ACCOUNTS
_SIGNALS: Final = Map("market.signal", int)


@dataclass(frozen=True, slots=True)
class _Holding:
    """A token of one chain."""

    denom: str
    name: str
    """In the answer, in lower case and before the unit."""
    unit: str
    purposes: tuple[str, ...] = ()
    """What it can be locked for."""

    def keys(self, account: bytes) -> list[bytes]:
        locks = [_TOKENS.locks.key(self.denom, account, each) for each in self.purposes]
        return [_TOKENS.balances.key(self.denom, account), *locks]

    def answer(self, account: bytes, state: ProvedState) -> dict[str, Any]:
        free = _number(state, _TOKENS.balances.key(self.denom, account))
        shown: dict[str, Any] = {f"{self.name}_free_{self.unit}": free}
        if self.purposes:
            shown[f"{self.name}_locked_{self.unit}"] = {
                purpose: _number(state, _TOKENS.locks.key(self.denom, account, purpose))
                for purpose in self.purposes
            }
        return shown


def _voucher(home: str, denom: str, name: str, unit: str) -> _Holding:
    return _Holding(f"{home}{SEPARATOR}{denom}", f"{name}_voucher", unit)


_HOLDINGS: Final[Mapping[str, tuple[_Holding, ...]]] = {
    PUBLIC: (
        _Holding(GRID_DENOM, "grid", "ngrid", (PURPOSE,)),
        _voucher(CONSORTIUM, WATT_DENOM, "watt", "uwatt"),
    ),
    CONSORTIUM: (
        _Holding(WATT_DENOM, "watt", "uwatt", (COLLATERAL, BOND)),
        _voucher(PUBLIC, GRID_DENOM, "grid", "ngrid"),
    ),
}
"""The oracle chain has no tokens, and no account that could hold them."""


async def read_account_on(
    chain: str, source: ChainSource, account: bytes, *, prove: bool
) -> dict[str, Any]:
    """Everything that an account has on one chain.

    Raises:
        Unavailable: no node gives a proof that holds.
    """
    holdings = _HOLDINGS[chain]
    nonce_key = _NONCES.key(account)
    keys = [nonce_key, *(key for each in holdings for key in each.keys(account))]
    if chain == PUBLIC:
        keys.append(_CERTIFIED.key(account))
    state = await source.read(keys)
    shown: dict[str, Any] = {"nonce": _number(state, nonce_key)}
    for holding in holdings:
        shown |= holding.answer(account, state)
    if chain == PUBLIC:
        shown["certificates"] = _certified(state, account)
    return shown | where(state) | (proofs(state, keys) if prove else {})


async def read_price(
    source: ChainSource, zone: int
) -> tuple[int | None, ProvedState, Sequence[bytes]]:
    """The indicative price of a zone, from state; with the keys that were read."""
    keys = [_SIGNALS.key(zone)]
    state = await source.read(keys)
    raw = state.values[keys[0]].value
    return None if raw is None else _SIGNALS.decode(raw), state, keys


async def read_certificate(
    source: ChainSource, certificate_id: bytes
) -> tuple[ProvedState, Sequence[bytes]]:
    """A certificate's record, or the proof that there is none."""
    keys = [rec.CERTIFICATES.key(certificate_id)]
    return await source.read(keys), keys


def where(state: ProvedState) -> dict[str, Any]:
    """Under which final header something was read."""
    return {
        "height": state.header.height,
        "header_hash": state.header.hash.hex(),
        "timestamp_ms": state.header.timestamp_ms,
        "finality_height": state.finality_height,
    }


def proofs(state: ProvedState, keys: Sequence[bytes]) -> dict[str, Any]:
    """All that a reader needs to check for himself; wire bytes in hexadecimal."""
    return {
        "proof": {
            "header": encode(state.header).hex(),
            "finality": state.finality.hex(),
            "values": [
                {
                    "key": key.hex(),
                    "value": None
                    if (held := state.values[key]).value is None
                    else _hex(held.value),
                    "proof": encode(held.proof).hex(),
                }
                for key in keys
            ],
        }
    }


def _certified(state: ProvedState, account: bytes) -> dict[str, int]:
    raw = state.values[_CERTIFIED.key(account)].value
    totals = rec.NO_ENERGY if raw is None else _CERTIFIED.decode(raw)
    return {"held_wh": totals.held_wh, "retired_wh": totals.retired_wh}


def _number(state: ProvedState, key: bytes) -> int:
    raw = state.values[key].value
    return 0 if raw is None else _NONCES.decode(raw)


def _hex(value: bytes | None) -> str:
    return "" if value is None else value.hex()
