"""A light client that follows the chain from genesis: what other chains know of it.

Law of the file: **the follower knows genesis, and believes headers for their certificates alone.** It is
the very code by which the other chains follow (`interchain/clients.py`). It takes every handover, some
headers between, and a client that missed a handover must not be able to go on.
"""

from collections.abc import Callable
from typing import Final

from msgspec import structs

from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Verifier, sha256
from gridtokenx.core.machine import Instant
from gridtokenx.finality.certificates import CommitCertificate
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain.clients import (
    CertifiedHeader,
    ClientGenesis,
    ClientKind,
    ClientState,
    check_update,
    initial_state,
)
from gridtokenx.lab.sim.outcome import Violation
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.runtime import ExecutedBlock

Rule = Callable[[ValidatorSet], ValidatorSet]
"""How the replicas under test count a set's votes."""
_EVERY: Final = 16
_DAY_MS: Final = 86_400_000
_DRIFT_MS: Final = 600_000
"""Clocks may be wrong by any fault of the vocabulary; whose time is right is not this checker's matter."""


class Follower:
    """One light client.

    Args:
        genesis: block 0.
        first: the set that genesis names.
        verifier: of signatures.
        rule: see `Rule`.
    """

    def __init__(
        self, genesis: ExecutedBlock, first: ValidatorSet, verifier: Verifier, rule: Rule
    ) -> None:
        declared = ClientGenesis(
            client_id="watched",
            counterparty="watcher",
            chain_id=genesis.header.chain_id,
            kind=ClientKind.PBFT,
            set_id=first.set_id,
            validators=first.members,
            trusting_period_ms=30 * _DAY_MS,
            clock_drift_ms=_DRIFT_MS,
        )
        self._client = initial_state(
            declared, sha256(b"gtx sim: watcher"), genesis.header.timestamp_ms
        )
        self._members = first
        self._verifier: Final = verifier
        self._rule: Final = rule
        self._left_behind: tuple[ClientState, ValidatorSet] | None = None

    def take(
        self, header: Header, proof: CommitCertificate, following: ValidatorSet, now: Instant
    ) -> None:
        """Hear of a committed block, in order of heights.

        Args:
            header: of the block.
            proof: its certificate.
            following: the set that finalises the next block.
            now: network time.

        Raises:
            Violation: a certified header is refused, or one is believed that must not be.
        """
        certified = CertifiedHeader(header, proof)
        if self._left_behind is not None:
            self._check_left_behind(self._left_behind, certified, now)
            self._left_behind = None
        hands_over = following.set_id != self._members.set_id
        if not hands_over and header.height % _EVERY:
            return
        before = (self._client, self._members)
        try:
            members = check_update(
                *before, certified, following if hands_over else None, now, self._verifier
            )
        except RemoteFault as fault:
            raise Violation("light-client", f"height {header.height} is refused: {fault}") from None
        self._members = self._rule(members)
        self._client = structs.replace(
            self._client,
            set_id=members.set_id,
            latest_height=header.height,
            latest_timestamp_ms=header.timestamp_ms,
            latest_hash=header.hash,
        )
        if hands_over:
            self._left_behind = before

    def _check_left_behind(
        self,
        missed: tuple[ClientState, ValidatorSet],
        certified: CertifiedHeader,
        now: Instant,
    ) -> None:
        """A client that missed a handover must refuse what the next set certifies."""
        try:
            check_update(*missed, certified, None, now, self._verifier)
        except RemoteFault:
            return
        raise Violation(
            "light-client",
            f"a client that missed the handover to set {certified.header.set_id} believes height"
            f" {certified.header.height}",
        )
