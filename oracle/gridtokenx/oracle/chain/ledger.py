"""The oracle chain put together: its genesis, its modules, and what others ask of its state."""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from gridtokenx.core.errors import LocalFault
from gridtokenx.core.gridtime import GridClock
from gridtokenx.core.keys import Verifier
from gridtokenx.core.types import Hash32, PublicKey
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.interchain.apps import attestation, meter_report
from gridtokenx.interchain.clients import ClientGenesis
from gridtokenx.interchain.council import Council
from gridtokenx.interchain.module import Interchain
from gridtokenx.ledger.runtime import Ledger
from gridtokenx.oracle.chain.admission import OracleAdmission
from gridtokenx.oracle.chain.dispatch import Dispatch, OutgoingPort
from gridtokenx.oracle.chain.feeds import Feeds
from gridtokenx.oracle.chain.meters import Meters
from gridtokenx.oracle.chain.parameters import FeedSpec, MeterParameters
from gridtokenx.oracle.chain.registry import Registry
from gridtokenx.oracle.chain.relayers import MAX_RELAYERS, OracleRelayers
from gridtokenx.oracle.chain.relaying import QuotedInterchain
from gridtokenx.pbft.membership import Membership
from gridtokenx.pbft.rotation import RotationBlocks

FIRST_SET_ID = 0


class OracleGenesis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that makes an oracle chain; no device, those come by packet."""

    chain_id: Hash32
    validators: Annotated[tuple[PublicKey, ...], Meta(min_length=1, max_length=100)]
    """The first oracles' keys: they run the chain, and observe."""
    rotation_blocks: RotationBlocks | msgspec.UnsetType = msgspec.UNSET
    """The leadership passes on after so many blocks, see `pbft/rotation.py`; unset: only when it fails."""
    relayers: tuple[PublicKey, ...]
    """Keys that may relay at first, within their quota."""
    clock: GridClock
    clients: tuple[ClientGenesis, ...]
    """Light clients of the consortium and the public chain."""
    consortium_client: str = "consortium"
    """Which of them is the consortium: registrations come from it, reports go to it."""
    public_client: str = "public"
    """Which of them is the public chain: attestations go to it."""
    meters: MeterParameters = MeterParameters()
    feeds: tuple[FeedSpec, ...] = ()

    @property
    def validator_set(self) -> ValidatorSet:
        """The first set that certifies blocks."""
        return ValidatorSet(set_id=FIRST_SET_ID, members=self.validators)

    def check(self) -> None:
        """Refuse a genesis that could not work.

        Raises:
            LocalFault: says what, where and what to do.
        """
        if not self.validator_set.is_well_formed():
            raise LocalFault("oracle genesis: validators repeats a key; give each oracle its own")
        if not len(set(self.relayers)) == len(self.relayers) <= MAX_RELAYERS:
            raise LocalFault(
                f"oracle genesis: relayers holds a key twice, or more than {MAX_RELAYERS} keys"
            )
        names = {client.client_id for client in self.clients}
        for name in (self.consortium_client, self.public_client):
            if name not in names:
                raise LocalFault(f"oracle genesis: clients has no {name!r}, only {sorted(names)}")
        feeds = [spec.feed for spec in self.feeds]
        if len(set(feeds)) != len(feeds):
            raise LocalFault("oracle genesis: feeds repeats a name")
        self.meters.check()
        for spec in self.feeds:
            spec.check()


@dataclass(frozen=True, slots=True)
class OracleChain:
    """The chain's ledger and the modules that others may want to reach."""

    ledger: Ledger
    membership: Membership
    registry: Registry
    meters: Meters
    feeds: Feeds
    interchain: Interchain


def oracle_chain(genesis: OracleGenesis, verifier: Verifier | None = None) -> OracleChain:
    """Put the chain together.

    Args:
        genesis: the chain's definition.
        verifier: checks other chains' certificates; libsodium if None.

    Raises:
        LocalFault: the genesis could not work.
    """
    genesis.check()
    consortium, public = genesis.consortium_client, genesis.public_client
    parameters, clock = genesis.meters, genesis.clock
    interchain = QuotedInterchain(genesis.clients, verifier)
    dispatch = Dispatch(interchain, (consortium, public), parameters.packet_timeout_ms)
    registry = Registry(clock, parameters.grace_ms, consortium)
    meters = Meters(clock, parameters, dispatch, consortium, public)
    membership = Membership(genesis.validator_set, verifier)
    relayers = OracleRelayers(genesis.relayers, membership.members)
    feeds = Feeds(genesis.feeds, membership, clock.network_genesis_ms)
    for port in (meter_report.PORT, attestation.PORT):
        interchain.register(OutgoingPort(port, dispatch))
    interchain.register(registry)
    ledger = Ledger(
        genesis.chain_id,
        (
            membership,
            registry,
            meters,
            feeds,
            dispatch,
            interchain,
            Council(membership.members),
            relayers,
        ),
        OracleAdmission(
            clock,
            parameters.ahead_ms,
            genesis.feeds,
            membership.is_member,
            relayers.is_relayer,
        ),
        membership.reference,
    )
    return OracleChain(ledger, membership, registry, meters, feeds, interchain)


def oracle_ledger(genesis: OracleGenesis, verifier: Verifier | None = None) -> Ledger:
    """The chain's ledger alone (see `oracle_chain`)."""
    return oracle_chain(genesis, verifier).ledger
