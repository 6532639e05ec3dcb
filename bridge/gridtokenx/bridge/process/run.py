"""`gtx bridge`: one relayer as a process."""

import asyncio
from typing import Annotated

from gridtokenx.bridge.process.chains import relayed, relaying_fee
from gridtokenx.bridge.process.driver import RelayerDriver
from gridtokenx.bridge.process.follower import FollowedChain
from gridtokenx.bridge.relayer.machine import Options, Relayer
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Signer, Ed25519Verifier
from gridtokenx.host.chains import ChainFacts, ClientParts, open_follower, read_chain, staleness
from gridtokenx.host.checking import CachingVerifier
from gridtokenx.host.client import ChainClient
from gridtokenx.host.config import Setting
from gridtokenx.host.follow import Follower
from gridtokenx.host.readiness import Readiness
from gridtokenx.host.role import Role, open_key_seed, open_role
from gridtokenx.host.settings import KeyedSettings, LinkSettings


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
    facts = {name: read_chain(name, link.genesis) for name, link in links.items()}
    specs = relayed(list(facts.values()))
    parts = ClientParts(seed, role.clock, role.metrics, role.log)
    followers = {
        name: open_follower(facts[name], link, parts, first=settings.position)
        for name, link in links.items()
    }
    chains = {
        name: _chain(facts[name], follower, role, Ed25519Signer(seed))
        for name, follower in followers.items()
    }
    machine = Relayer(specs, Options(position=settings.position, relayers=settings.relayers))
    driver = RelayerDriver(machine, chains, role.clock, role.log, role.metrics)
    async with (
        role.serving(lambda: _readiness(role, followers), lambda: _heights(followers)),
        asyncio.TaskGroup() as group,
    ):
        for name, follower in followers.items():
            group.create_task(follower.run(), name=f"follow {name}")
        group.create_task(driver.run(), name="relay")


def _chain(
    facts: ChainFacts, follower: Follower, role: Role, signer: Ed25519Signer
) -> FollowedChain:
    nonces = facts.nonces(follower, signer.public_key, role.clock)
    return FollowedChain(
        follower,
        ChainClient(follower, signer, nonces, role.clock),
        facts.validators,
        CachingVerifier(Ed25519Verifier()),
        role.clock,
        relaying_fee(facts),
    )


def _readiness(role: Role, followers: dict[str, Follower]) -> Readiness:
    now_ms = role.clock.now_ms()
    return Readiness.unless(
        reason for name, each in followers.items() for reason in staleness(name, each, now_ms)
    )


def _heights(followers: dict[str, Follower]) -> dict[str, object]:
    return {name: follower.trust.height for name, follower in followers.items()}
