"""Claiming certificates: some of them, half of each, by whoever holds them, and once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from gridtokenx.core.codec import Wire
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.state_tree import StateTree
from gridtokenx.devices.fleet.workload import OLDEST_CERTIFICATES, RETIRE_ONE_IN, Retirer
from gridtokenx.host.chains import Account, ChainAccess
from gridtokenx.host.client import Inclusion
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.interchain.apps import attestation
from gridtokenx.interchain.apps.attestation import GenerationAttestation
from gridtokenx.ledger.runtime import OK, Context
from gridtokenx.ledger.state import State
from gridtokenx.public.rec import ACCOUNTS, NO_ENERGY, Certificates, Retire

OWNER, STRANGER = b"\x01" * 32, b"\x02" * 32
LATE_MS = 10**15


@dataclass
class Chain:
    """A public chain of one module, with one account."""

    module: Certificates = field(default_factory=lambda: Certificates(GridClock(0, 0, 1), "oracle"))
    state: State = field(default_factory=lambda: State(StateTree.empty()))
    claims: list[Retire] = field(default_factory=list)
    broken: bool = False

    def context(self, sender: bytes = OWNER) -> Context:
        return Context(b"", 1, 1, LATE_MS, self.state, sender)

    def mint(self, interval: int, energy_wh: int, owner: bytes = OWNER) -> None:
        attested = GenerationAttestation(
            b"\x07" * 32, interval, energy_wh, owner, 0, attestation.SOLAR
        )
        self.module.mint(self.context(), attested)

    async def read(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes | None]:
        return {key: self.state.get(key) for key in keys}

    async def call(self, calls: Sequence[Wire], valid_for_ms: int) -> Inclusion:
        if self.broken:
            raise RemoteFault("expired")
        for call in calls:
            assert isinstance(call, Retire)
            self.module.retire(self.context(), call)
            self.claims.append(call)
        return Inclusion(b"", 1, (OK,))


def retirer(chain: Chain, metrics: Metrics | None = None) -> Retirer:
    account = cast("Account", chain)
    return Retirer(
        cast("ChainAccess", chain), {OWNER: ("h07", account)}, metrics or Metrics(), NullLogger()
    )


async def test_one_in_some_is_claimed_by_half() -> None:
    chain, metrics = Chain(), Metrics()
    for interval in range(7):
        chain.mint(interval, 1_000)
    await retirer(chain, metrics).look()
    assert len(chain.claims) == -(-7 // RETIRE_ONE_IN)
    assert {claim.energy_wh for claim in chain.claims} == {500}
    assert {claim.beneficiary for claim in chain.claims} == {"h07"}
    assert metrics.value("certificates_claimed_wh") == 500 * len(chain.claims)
    assert ACCOUNTS.read(chain.state, NO_ENERGY, OWNER).retired_wh == 500 * len(chain.claims)


async def test_each_is_looked_at_once_and_another_life_claims_nothing_twice() -> None:
    chain = Chain()
    chain.mint(0, 1_000)
    first = retirer(chain)
    await first.look()
    await first.look()
    await retirer(chain).look()
    assert len(chain.claims) == 1


async def test_what_others_hold_is_left_alone() -> None:
    chain = Chain()
    chain.mint(0, 1_000, STRANGER)
    await retirer(chain).look()
    assert chain.claims == []


async def test_a_claim_that_failed_is_made_by_the_next_look() -> None:
    chain = Chain(broken=True)
    chain.mint(0, 1_000)
    worker = retirer(chain)
    with pytest.raises(RemoteFault):
        await worker.look()
    chain.broken = False
    await worker.look()
    assert len(chain.claims) == 1


async def test_a_new_process_does_not_go_back_to_the_beginning() -> None:
    chain = Chain()
    for interval in range(OLDEST_CERTIFICATES + 3):
        chain.mint(interval, 10)
    await retirer(chain).look()
    assert len(chain.claims) <= -(-OLDEST_CERTIFICATES // RETIRE_ONE_IN) + 1
