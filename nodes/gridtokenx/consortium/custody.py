"""Where WATT comes from: a custodian's attestation of the baht in reserve.

Law of the file: **supply of WATT <= attested reserve.** One WATT is one THB. The opening supply is
what the custodian attests in genesis; nothing on the chain mints more.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.types import PublicKey, Text, UInt63
from gridtokenx.ledger.runtime import Context, Module
from gridtokenx.ledger.state import Cell, State
from gridtokenx.ledger.tokens import Tokens, module_account

WATT_DENOM: Final = "WATT"
TREASURY: Final = module_account("treasury")
"""Receives transaction fees, trading fees and the dust of rounding."""


class ReserveAttested(Wire, frozen=True, tag="custody.reserve_attested"):
    """The custodian attested a reserve, and WATT was minted on it."""

    custodian: PublicKey
    reserve_uwatt: UInt63
    supply_uwatt: UInt63
    """All WATT after minting."""
    statement: Text
    """The custodian's own words: what is held, where and when."""


class Custody(Module):
    """Mints the opening balances on the attested reserve.

    Args:
        tokens: keeps the balances.
        custodian: who attests.
        reserve_uwatt: the attested reserve.
        statement: the custodian's own words.
        opening: opening balances in micro-WATT by account.
    """

    name = "custody"
    events = (ReserveAttested,)

    def __init__(
        self,
        tokens: Tokens,
        custodian: bytes,
        reserve_uwatt: int,
        statement: str,
        opening: Sequence[tuple[bytes, int]],
    ) -> None:
        supply_uwatt = sum(amount for _, amount in opening)
        if supply_uwatt > reserve_uwatt:
            raise LocalFault(
                f"genesis: opening balances of {supply_uwatt} uWATT exceed the attested reserve of "
                f"{reserve_uwatt}; lower them or have the custodian attest more"
            )
        self._tokens: Final = tokens
        self._opening: Final = tuple(opening)
        self._attestation: Final = ReserveAttested(
            custodian=custodian,
            reserve_uwatt=reserve_uwatt,
            supply_uwatt=supply_uwatt,
            statement=statement,
        )
        self.reserve_uwatt: Final = Cell("custody.reserve", int, 0)

    def genesis(self, ctx: Context) -> None:
        """Mint what is attested to those who brought it."""
        self.reserve_uwatt.put(ctx.state, self._attestation.reserve_uwatt)
        for account, amount in self._opening:
            self._tokens.mint(ctx.state, WATT_DENOM, account, amount)
        ctx.emit(self._attestation)

    def check_invariants(self, state: State) -> Iterator[str]:
        """No WATT without baht in reserve."""
        supply, reserve = self._tokens.supply(state, WATT_DENOM), self.reserve_uwatt.get(state)
        if supply > reserve:
            yield f"supply {supply} uWATT exceeds the attested reserve {reserve}"
