"""`gtx bridge`: one relayer as a process."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Final

from gridtokenx.bridge.process.chains import READERS, ChainFacts, relayed
from gridtokenx.bridge.process.driver import RelayerDriver
from gridtokenx.bridge.process.follower import FollowedChain
from gridtokenx.bridge.relayer.machine import Options, Relayer
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.host.addresses import NodeAddress
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.client import ChainClient
from gridtokenx.host.config import Setting
from gridtokenx.host.follow import Follower
from gridtokenx.host.handshake import LinkIdentity
from gridtokenx.host.role import Role, open_key_seed, open_role
from gridtokenx.host.security import LinkSecurity, mutual_security, open_security
from gridtokenx.host.settings import KeyedSettings, LinkSettings
from gridtokenx.host.transport import NetworkParts

READY_AGE_MS: Final = 60_000
"""A chain of which nothing was heard for so long makes the relayer not ready."""


class RelayerSettings(KeyedSettings, frozen=True, kw_only=True):
    """Settings of `gtx bridge`."""

    public: LinkSettings
    consortium: LinkSettings
    oracle: LinkSettings
    position: Annotated[
        int, Setting("Which of the network's relayers this is, from 0.", minimum=0, maximum=63)
    ] = 0
    relayers: Annotated[
        int,
        Setting("How many relayers the network has; they take turns.", minimum=1, maximum=64),
    ] = 1


async def run_relayer(settings: RelayerSettings) -> None:
    """Relay until cancelled.

    Raises:
        LocalFault: settings, keys, certificates or genesis files that cannot be used.
    """
    if settings.position >= settings.relayers:
        raise LocalFault(
            f"position = {settings.position} is not allowed: below relayers = {settings.relayers}"
        )
    role = open_role(settings, "relayer")
    seed = open_key_seed(settings)
    links = {
        "public": settings.public,
        "consortium": settings.consortium,
        "oracle": settings.oracle,
    }
    facts = {name: READERS[name](link.genesis) for name, link in links.items()}
    specs = relayed(list(facts.values()))
    followers = {
        name: _follower(facts[name], link, role, seed, settings.position)
        for name, link in links.items()
    }
    chains = {
        name: _chain(facts[name], follower, role, Ed25519Signer(seed))
        for name, follower in followers.items()
    }
    machine = Relayer(specs, Options(position=settings.position, relayers=settings.relayers))
    driver = RelayerDriver(machine, chains, role.clock, role.log, role.metrics)
    async with (
        role.serving(
            lambda: _is_ready(role, list(followers.values())), lambda: _heights(followers)
        ),
        asyncio.TaskGroup() as group,
    ):
        for name, follower in followers.items():
            group.create_task(follower.run(), name=f"follow {name}")
        group.create_task(driver.run(), name="relay")


def _follower(
    facts: ChainFacts, link: LinkSettings, role: Role, seed: bytes, position: int
) -> Follower:
    if not link.nodes:
        raise LocalFault(f"{facts.name}.nodes is empty: name at least one node to follow")
    parts = NetworkParts(
        own=LinkIdentity(Ed25519Signer(seed), "client", facts.genesis.chain_id, facts.genesis_hash),
        security=_security(facts, link, seed),
        verifier=CachingVerifier(Ed25519Verifier()),
        metrics=role.metrics,
        log=role.log,
    )
    addresses = [NodeAddress.parse(text) for text in link.nodes]
    return Follower(facts.trust, addresses, parts, from_newest=True, first=position)


def _security(facts: ChainFacts, link: LinkSettings, seed: bytes) -> LinkSecurity:
    if facts.name == "public":
        return open_security(listens=False)
    if link.certificate is None or link.authority is None:
        raise LocalFault(
            f"{facts.name}.certificate and {facts.name}.authority are needed: "
            "the chain admits only those whom its authority knows"
        )
    return mutual_security(seed, link.certificate, link.authority, listens=False)


def _chain(
    facts: ChainFacts, follower: Follower, role: Role, signer: Ed25519Signer
) -> FollowedChain:
    nonces = facts.nonces(follower, signer.public_key, role.clock)
    return FollowedChain(
        follower,
        ChainClient(follower, signer, nonces, role.clock),
        facts.genesis.validator_set,
        CachingVerifier(Ed25519Verifier()),
        role.clock,
        facts.fee_per_weight,
    )


def _is_ready(role: Role, followers: Sequence[Follower]) -> bool:
    now_ms = role.clock.now_ms()
    heads = [follower.head for follower in followers]
    return all(
        head is not None and now_ms - head.header.timestamp_ms < READY_AGE_MS for head in heads
    )


def _heights(followers: dict[str, Follower]) -> dict[str, object]:
    return {name: follower.trust.height for name, follower in followers.items()}
