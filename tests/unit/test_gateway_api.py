"""The gateway's HTTP: shapes, refusals for every kind of bad input, proofs, and the way in."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import ClientTimeout
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway_world import FIRST, NETWORK_MS, Story, key, make_facts, members, signer
from tests.interchain_chains import certificate
from tests.stages import examples

from gridtokenx.consortium.market import messages as market
from gridtokenx.consortium.market.auction import Side
from gridtokenx.core.addresses import address
from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import RemoteFault
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.core.state_tree import StateProof, StateTree, verify_absence, verify_membership
from gridtokenx.finality.proofs import FinalityProof
from gridtokenx.gateway.api import Api
from gridtokenx.gateway.facts import CONSORTIUM, ORACLE, PUBLIC
from gridtokenx.gateway.index import Index
from gridtokenx.gateway.ports import ProvedState, ProvedValue, Unavailable
from gridtokenx.gateway.queries import Queries
from gridtokenx.gateway.submission import Submissions
from gridtokenx.gateway.web import MAX_BODY_BYTES, MAX_LIMIT
from gridtokenx.host.chains import CHAINS
from gridtokenx.host.logs import NullLogger
from gridtokenx.host.metrics import Metrics
from gridtokenx.ledger.blocks import Header
from gridtokenx.ledger.runtime import OK, CallResult, Executed
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import Transaction, sign_transaction

FACTS = make_facts()
NOW_MS = NETWORK_MS + 60_000


class FakeChain:
    """A chain source over a state tree; refuses and fails as told."""

    def __init__(self, chain: str) -> None:
        self.story = Story(FACTS, chain)
        self.tree = StateTree.empty()
        self.fault: RemoteFault | None = None
        self.taken: list[Transaction] = []
        self.took = asyncio.Event()
        self.chain = chain

    async def read(self, keys: Sequence[bytes]) -> ProvedState:
        if self.fault is not None:
            raise self.fault
        header = msgspec.structs.replace(self.story.block().header, state_root=self.tree.root)
        proof = certificate(header, FACTS.chains[self.chain].validators, members(self.chain))
        values = {each: ProvedValue(self.tree.get(each), self.tree.prove(each)) for each in keys}
        return ProvedState(header, encode(proof), header.height, values)

    async def submit(self, transaction: Transaction) -> None:
        if self.fault is not None:
            raise self.fault
        self.taken.append(transaction)
        self.took.set()


class World:
    def __init__(self, directory: Path) -> None:
        self.index = Index(directory / "index.sqlite", FACTS)
        self.chains = {chain: FakeChain(chain) for chain in CHAINS}
        self.stories = {chain: Story(FACTS, chain) for chain in CHAINS}
        self.metrics = Metrics()
        self.troubles: list[str] = []
        submissions = Submissions(FACTS, self.chains, self.index, Ed25519Verifier(), lambda: NOW_MS)
        self.api = Api(
            FACTS,
            Queries(self.index, FACTS),
            self.chains,
            submissions,
            self.metrics,
            lambda: NOW_MS,
            lambda: self.troubles,
        )
        self.client: TestClient[Any, Any]

    def on(self, chain: str, *events: Wire) -> None:
        self.index.apply(chain, self.stories[chain].block(*events))

    async def get(self, path: str) -> tuple[int, Any]:
        answer = await self.client.get(path)
        assert answer.content_type == "application/json"
        return answer.status, await answer.json()

    async def post(self, path: str, body: bytes | dict[str, object]) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        answer = await self.client.post(path, data=data)
        return answer.status, await answer.json()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    server = TestServer(made.api.application(NullLogger()))
    made.client = TestClient(server, timeout=ClientTimeout(total=20))
    await made.client.start_server()
    yield made
    await made.client.close()
    made.index.close()


def order(nonce: int = 0, chain: str = CONSORTIUM, call: Wire | None = None) -> Transaction:
    place = market.PlaceOrder(1, 0, FIRST + 2, Side.BUY, 4_000_000, 500)
    chain_id = FACTS.chains[chain].chain_id
    return sign_transaction(signer("alice"), chain_id, nonce, [call or place], fee=800)


def body(transaction: Transaction) -> dict[str, object]:
    return {"transaction": transaction.encoded.hex()}


# -- looking ---------------------------------------------------------------------------------------


async def test_every_list_answers_on_an_empty_network(world: World) -> None:
    for path in (
        "status", "markets", "markets/zone-0/auctions", "orders", "recs", "settlements",
        "intervals", "feeds", "packets", "events", "chains/oracle/headers",
    ):  # fmt: skip
        status, _ = await world.get(f"/api/v1/{path}")
        assert status == 200, path


async def test_status_and_headers(world: World) -> None:
    world.on(CONSORTIUM)
    _, status = await world.get("/api/v1/status")
    assert status["network"] == "test"
    assert status["chains"]["consortium"]["finalized"] == 1
    _, answer = await world.get("/api/v1/chains/consortium/headers?limit=5")
    shown = answer["headers"][0]
    header = decode(bytes.fromhex(shown["header"]), Header)
    assert header.hash.hex() == shown["hash"]


async def test_orders_are_found_by_account_market_and_status(world: World) -> None:
    world.on(
        CONSORTIUM,
        market.BookOpened(0, FIRST + 2, NOW_MS, 1, 1, 1),
        market.OrderPlaced(1, key("alice"), 7, 0, FIRST + 2, Side.BUY, 4_000_000, 500, 9),
    )
    who = address(key("alice"))
    _, found = await world.get(f"/api/v1/orders?account={who}&market=zone-0&status=open&limit=3")
    assert found["orders"][0]["account"] == who
    _, found = await world.get("/api/v1/orders?status=filled")
    assert found["orders"] == []
    _, book = await world.get("/api/v1/markets/zone-0/book")
    assert book["buy"][0]["energy_wh"] == 500
    assert (await world.get("/api/v1/markets/zone-1/book"))[1]["error"]["code"] == "no-open-book"


async def test_limits_are_clamped(world: World) -> None:
    for _ in range(3):
        world.on(CONSORTIUM)
    path = "/api/v1/chains/consortium/headers?limit="
    assert len((await world.get(path + "2"))[1]["headers"]) == 2
    assert (await world.get(path + str(MAX_LIMIT * 1_000)))[0] == 200


# -- accounts and proofs ---------------------------------------------------------------------------


async def test_balances_come_with_proofs_that_anyone_can_check(world: World) -> None:
    alice = key("alice")
    from gridtokenx.gateway.accounts import _TOKENS

    free = _TOKENS.balances.key("WATT", alice)
    locked = _TOKENS.locks.key("WATT", alice, "energy")
    world.chains[CONSORTIUM].tree = StateTree.empty().update(
        {free: encode(12_000_000), locked: encode(345)}
    )
    status, found = await world.get(f"/api/v1/accounts/{address(alice)}?prove=true")
    assert status == 200
    shown = found["chains"]["consortium"]
    assert shown["watt_free_uwatt"] == 12_000_000
    assert shown["watt_locked_uwatt"] == {"energy": 345, "bond": 0}
    assert found["chains"]["public"]["grid_free_ngrid"] == 0
    proof = shown["proof"]
    header = decode(bytes.fromhex(proof["header"]), Header)
    assert header.hash.hex() == shown["header_hash"]
    decode(bytes.fromhex(proof["finality"]), FinalityProof)
    for each in proof["values"]:
        state_proof = decode(bytes.fromhex(each["proof"]), StateProof)
        key_, value = bytes.fromhex(each["key"]), each["value"]
        if value is None:
            assert verify_absence(header.state_root, key_, state_proof)
        else:
            value = bytes.fromhex(value)
            assert verify_membership(header.state_root, key_, value, state_proof)


async def test_the_price_is_read_by_proof(world: World) -> None:
    from gridtokenx.gateway.accounts import _SIGNALS

    tree = StateTree.empty().update({_SIGNALS.key(0): encode(3_900_000)})
    world.chains[CONSORTIUM].tree = tree
    _, found = await world.get("/api/v1/markets/zone-0/price?prove=true")
    assert found["price_uwatt_per_kwh"] == 3_900_000
    assert found["proof"]["values"][0]["value"] == encode(3_900_000).hex()
    assert (await world.get("/api/v1/markets/zone-1/price"))[1]["price_uwatt_per_kwh"] is None


@pytest.mark.parametrize(
    "path", [f"/api/v1/accounts/{address(key('alice'))}", "/api/v1/markets/zone-0/price"]
)
async def test_what_can_not_be_proved_is_not_shown(world: World, path: str) -> None:
    world.chains[CONSORTIUM].fault = Unavailable("no-proof", "every node lies")
    status, found = await world.get(path)
    assert status == 503
    assert found == {"error": {"code": "no-proof", "message": "every node lies"}}


# -- the way in ------------------------------------------------------------------------------------


async def test_an_order_is_forwarded_as_it_was_signed(world: World) -> None:
    status, found = await world.post("/api/v1/orders", body(order()))
    assert status == 202
    assert found == {
        "transaction_id": order().id.hex(),
        "chain": "consortium",
        "final": False,
    }
    assert world.chains[CONSORTIUM].taken == [order()]


async def test_waiting_ends_with_the_final_receipt(world: World) -> None:
    refused = CallResult("gate-closed", "interval takes no orders any more")
    asking = asyncio.create_task(world.post("/api/v1/orders?wait=true", body(order())))
    await world.chains[CONSORTIUM].took.wait()
    world.on(CONSORTIUM, Executed(order().id, (refused,)))
    status, found = await asking
    assert status == 200
    assert found["final"]
    assert found["results"] == [
        {"code": "gate-closed", "message": "interval takes no orders any more"}
    ]
    again = await world.post("/api/v1/orders", body(order()))
    assert again == (200, found)
    assert await world.get(f"/api/v1/transactions/{order().id.hex()}") == (200, found)


async def test_waiting_ends_when_the_time_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridtokenx.gateway.api.WAIT_S", 0.05)
    status, found = await world.post("/api/v1/orders?wait=true", body(order()))
    assert (status, found["final"]) == (202, False)


async def test_only_so_many_may_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridtokenx.gateway.submission.MAX_WAITERS", 0)
    status, found = await world.post("/api/v1/orders?wait=true", body(order()))
    assert (status, found["error"]["code"]) == (503, "too-many-waiting")
    assert (await world.post("/api/v1/orders", body(order())))[0] == 202


async def test_any_transaction_goes_to_its_chain(world: World) -> None:
    gift = order(chain=PUBLIC, call=Transfer("GRID", key("bob"), 5))
    assert (await world.post("/api/v1/transactions", body(gift)))[0] == 202
    assert world.chains[PUBLIC].taken == [gift]
    status, found = await world.get("/api/v1/transactions/" + "00" * 32)
    assert (status, found["error"]["code"]) == (404, "no-receipt")


async def test_a_nodes_refusal_is_handed_on(world: World) -> None:
    world.chains[CONSORTIUM].fault = RemoteFault("nonce-used", "the account's next nonce is 4")
    for path in ("/api/v1/orders", "/api/v1/orders?wait=1"):
        status, found = await world.post(path, body(order()))
        assert (status, found["error"]["code"]) == (400, "nonce-used")
    world.chains[CONSORTIUM].fault = Unavailable("no-node", "nobody is there")
    assert (await world.post("/api/v1/orders", body(order())))[0] == 503


def bad_transactions() -> dict[str, tuple[Transaction, str]]:
    good = order()
    replace = msgspec.structs.replace
    stranger = sign_transaction(signer("alice"), b"\x77" * 32, 0, [Transfer("W", key("bob"), 1)])
    return {
        "forged": (replace(good, signature=bytes(64)), "bad-signature"),
        "altered": (replace(good, body=replace(good.body, fee=1)), "bad-signature"),
        "stranger": (stranger, "unknown-chain"),
        "other chain": (order(chain=ORACLE), "wrong-chain"),
        "no order": (order(call=Transfer("WATT", key("bob"), 5)), "not-an-order"),
        "expired": (
            sign_transaction(
                signer("alice"),
                FACTS.chains[CONSORTIUM].chain_id,
                0,
                [market.CancelOrder(zone=0, interval=FIRST, client_order_id=1)],
                valid_until_ms=NOW_MS - 1,
            ),
            "expired",
        ),
    }


@pytest.mark.parametrize("name", list(bad_transactions()))
async def test_hopeless_transactions_reach_no_node(world: World, name: str) -> None:
    transaction, code = bad_transactions()[name]
    status, found = await world.post("/api/v1/orders", body(transaction))
    assert (status, found["error"]["code"]) == (400, code)
    assert found["error"]["message"]
    assert not any(chain.taken for chain in world.chains.values())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b'{"transaction": 5}', 400),
        (b'{"transaction": "zz"}', 400),
        (b'{"transaction": "0"}', 400),
        (b'{"transaction": ""}', 400),
        (b'{"transaction": "00 11"}', 400),
        (b'{"transaction": "\xc3\xa9\xc3\xa9"}', 400),
        (b'{"transaction": "00", "sign": true}', 400),
        (b'{"transaction": "' + b"c1" * 40 + b'"}', 400),
        (b"[" * 100_000, 400),
        (b'{"transaction": "' + b"00" * (MAX_BODY_BYTES // 2) + b'"}', 413),
    ],
)
async def test_bad_bodies_are_refused(world: World, data: bytes, status: int) -> None:
    found = await world.post("/api/v1/orders", data)
    assert found[0] == status
    assert found[1]["error"]["code"]
    assert found[1]["error"]["message"]


# -- bad requests ----------------------------------------------------------------------------------

ZERO = "00" * 32


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nothing", 404, "not-found"),
        ("/api/v1", 404, "not-found"),
        ("/api/v2/status", 404, "not-found"),
        ("/api/v1/chains/beacon/headers", 404, "unknown-chain"),
        ("/api/v1/chains/public/headers?limit=0", 400, "bad-limit"),
        ("/api/v1/chains/public/headers?limit=-1", 400, "bad-limit"),
        ("/api/v1/chains/public/headers?limit=1e9", 400, "bad-limit"),
        ("/api/v1/chains/public/headers?limit=٣", 400, "bad-limit"),
        ("/api/v1/chains/public/headers?limit=" + "9" * 40, 400, "bad-limit"),
        ("/api/v1/chains/public/headers?limit=1&limit=2", 400, "repeated-parameter"),
        ("/api/v1/chains/public/headers?lmit=1", 400, "unknown-parameter"),
        ("/api/v1/status?x=" + "y" * 3_000, 400, "query-too-long"),
        ("/api/v1/markets/zone-9/price", 404, "unknown-market"),
        ("/api/v1/markets/0/auctions", 404, "unknown-market"),
        ("/api/v1/markets/zone-0%00/auctions", 404, "unknown-market"),
        ("/api/v1/orders?account=grid1nonsense", 400, "bad-address"),
        ("/api/v1/orders?market=zone-00", 404, "unknown-market"),
        ("/api/v1/orders?status=lost", 400, "bad-status"),
        ("/api/v1/events?after=x", 400, "bad-after"),
        ("/api/v1/packets?route=public-moon", 400, "bad-route"),
        ("/api/v1/packets?status=eaten", 400, "bad-status"),
        ("/api/v1/recs?owner=" + "x" * 500, 400, "bad-address"),
        ("/api/v1/recs/xyz", 400, "bad-rec"),
        ("/api/v1/recs/" + ZERO, 404, "unknown-rec"),
        ("/api/v1/recs/" + ZERO + "?prove=maybe", 400, "bad-prove"),
        ("/api/v1/accounts/alice", 400, "bad-address"),
        ("/api/v1/accounts/%F0%9F%92%A9", 400, "bad-address"),
        ("/api/v1/transactions/00", 400, "bad-transaction-id"),
        ("/api/v1/feeds/none", 404, "unknown-feed"),
    ],
)
async def test_bad_requests_say_what_was_wrong(
    world: World, path: str, status: int, code: str
) -> None:
    found, answer = await world.get(path)
    assert (found, answer["error"]["code"]) == (status, code)
    assert answer["error"]["message"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods_are_refused(world: World, method: str) -> None:
    answer = await world.client.request(method, "/api/v1/status")
    assert answer.status == 405
    assert (await answer.json())["error"]["code"] == "method-not-allowed"
    assert "GET" in answer.headers["Allow"]


@settings(
    max_examples=examples(150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_nothing_that_is_asked_is_a_bug(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Random paths, parameters and bodies: answers below 500, in JSON, with a reason."""
    words = st.text(max_size=20) | st.sampled_from(["1", "true", "zone-0", address(key("alice"))])
    routes = (
        "status", "chains/{}/headers", "markets/{}/price", "markets/{}/auctions",
        "markets/{}/book", "orders", "recs", "recs/{}", "accounts/{}", "feeds/{}", "packets",
        "events", "transactions/{}", "intervals", "settlements", "{}",
    )  # fmt: skip
    names = ("limit", "account", "market", "status", "owner", "prove", "after", "route", "wait")
    route, word = data.draw(st.sampled_from(routes)), data.draw(words)
    query = data.draw(st.dictionaries(st.sampled_from(names), words, max_size=3))
    content = data.draw(st.none() | st.binary(max_size=200))

    async def ask() -> None:
        made = World(tmp_path_factory.mktemp("api"))
        async with TestClient(TestServer(made.api.application(NullLogger()))) as client:
            from urllib.parse import quote

            path = "/api/v1/" + route.format(quote(word, safe=""))
            method = "GET" if content is None else "POST"
            answer = await client.request(method, path, params=query, data=content)
            assert answer.status < 500
            assert answer.status == 200 or (await answer.json())["error"]["message"]
        made.index.close()

    asyncio.run(ask())


async def test_a_bug_is_told_without_its_insides(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Queries, "events", fail)
    status, found = await world.get("/api/v1/events")
    assert (status, found["error"]["code"]) == (500, "internal")
    assert "secret" not in str(found)


async def test_too_many_requests_at_once_are_told_to_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridtokenx.gateway.web.MAX_REQUESTS", 0)
    status, found = await world.get("/api/v1/status")
    assert (status, found["error"]["code"]) == (503, "busy")


# -- operators -------------------------------------------------------------------------------------


async def test_health_ready_and_metrics(world: World) -> None:
    assert await world.get("/health") == (200, {"status": "ok"})
    assert await world.get("/ready") == (200, {"ready": True, "reasons": []})
    world.troubles.append("public: nothing verified yet")
    assert await world.get("/ready") == (
        503,
        {"ready": False, "reasons": ["public: nothing verified yet"]},
    )
    await world.get("/api/v1/orders?status=lost")
    text = await (await world.client.get("/metrics")).text()
    assert 'gtx_gateway_refused_total{reason="bad-status"} 1.0' in text


async def test_the_page_needs_nothing_from_elsewhere(world: World) -> None:
    answer = await world.client.get("/")
    page = await answer.text()
    assert answer.content_type == "text/html"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    for word in ("http://", "https://", "src=", "@import"):
        outside = page.replace("http://www.w3.org/2000/svg", "")
        assert word not in outside
    assert OK.code == "ok"
