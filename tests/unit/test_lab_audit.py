"""The audit judges every store that can be opened, and names the one that cannot."""

import asyncio
from pathlib import Path

from tests.gateway_world import RealChain, real_chains

from gridtokenx.core.codec import encode
from gridtokenx.host.chains import put_together
from gridtokenx.host.storage import Store
from gridtokenx.lab.manifest import Manifest
from gridtokenx.lab.testnet.audit import Audit, _compare_nodes, _longest, stopped_chain
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.ledger.records import block_writes


def fill(directory: Path, chain: RealChain) -> None:
    async def write() -> None:
        store = Store.open(directory / "data")
        for executed in chain.blocks:
            proof = None if executed.height == 0 else encode(chain.proof(executed.header))
            await store.write(list(block_writes(executed, proof)))
        store.close()

    asyncio.run(write())


def test_a_damaged_store_is_named_and_the_others_are_judged(tmp_path: Path) -> None:
    layout = Layout(tmp_path, Manifest())
    chain = real_chains()["consortium"]
    for _ in range(2):
        chain.block()
    for member in layout.nodes("consortium"):
        fill(layout.directory(member.name), chain)
    damaged = layout.directory("consortium-2") / "data" / "data.mdb"
    damaged.write_bytes(damaged.read_bytes()[:5_000])
    result = Audit()
    stopped = stopped_chain(layout, put_together("consortium", chain.genesis))
    _compare_nodes(stopped, result)
    assert result.verdicts.as_booleans() == {
        "consortium_agreement": True,
        "consortium_stores": False,
    }
    assert result.verdicts.against["consortium_stores"][0].startswith("consortium-2: ")
    assert _longest(stopped) != "consortium-2"
