"""Whom a client asks to take a transaction, and whose refusal it believes."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest
from tests.unit.host_chain import CHAIN_ID, CLIENTS, TREASURY

from gridtokenx.core.errors import RemoteFault
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.client import submit_to_some
from gridtokenx.host.follow import Follower
from gridtokenx.host.follow_messages import BUSY, Question, Reply, Submit, SubmitResult, Submitted
from gridtokenx.host.questions import Refusal
from gridtokenx.ledger.admission import NONCE_USED
from gridtokenx.ledger.tokens import Transfer
from gridtokenx.ledger.transactions import sign_transaction

PAYMENT = sign_transaction(CLIENTS[0], CHAIN_ID, 0, [Transfer("WATT", TREASURY, 1)])


@dataclass
class Nodes:
    """Each node's answer in its turn: a reason, or None for silence."""

    answers: list[str | None]
    asked: list[int] = field(default_factory=list)

    def in_turn(self) -> list[NodeAddress]:
        return [NodeAddress(HostPort("127.0.0.1", index)) for index in range(len(self.answers))]

    async def ask_one(self, node: NodeAddress, question: Question, within_s: float) -> Reply:
        assert isinstance(question, Submit)
        assert within_s > 0
        self.asked.append(node.where.port)
        reason = self.answers[node.where.port]
        if reason is None:
            raise RemoteFault("timeout", "nothing came")
        if reason == BUSY:
            raise Refusal(BUSY, "more is submitted than this chain carries")
        return Submitted((SubmitResult(reason=reason, detail=""),))


async def outcome(validators: int, *answers: str | None) -> tuple[str | None, int]:
    """What becomes of a submission, and how many nodes were asked."""
    nodes = Nodes([*answers])
    members = tuple(index.to_bytes(32, "big") for index in range(validators))
    trust = SimpleNamespace(validators=ValidatorSet(0, members))
    follower = cast("Follower", SimpleNamespace(nodes=nodes, trust=trust))
    answer = await submit_to_some(follower, PAYMENT)
    return None if answer is None else answer.reason, len(nodes.asked)


@pytest.mark.parametrize(
    ("validators", "answers", "expected"),
    [
        (4, ["ok", "ok", "ok", "ok"], ("ok", 2)),
        (4, [None, "ok", "ok", "ok"], ("ok", 3)),
        (4, ["no", "ok", "no", "no"], ("ok", 2)),
        (4, ["no", "no", "ok", "ok"], ("no", 2)),
        (7, ["no", "no", "ok", "ok", "ok", "ok", "ok"], ("ok", 3)),
        (7, ["no", "no", "no", "ok", "ok", "ok", "ok"], ("no", 3)),
        (7, ["no", "no", None, None, "no", "ok", "ok"], ("no", 5)),
        (1, ["no"], ("no", 1)),
        (4, ["no"], ("no", 1)),
        (4, ["no", "no"], ("no", 2)),
    ],
)
async def test_two_take_it_and_more_than_may_be_faulty_refuse_it(
    validators: int, answers: list[str | None], expected: tuple[str, int]
) -> None:
    assert await outcome(validators, *answers) == expected


@pytest.mark.parametrize(
    ("validators", "answers"),
    [
        (4, ["no", None, None, None]),
        (7, [None, "no", None, None, None, None, "no"]),
        (4, [None, None, None, None]),
        (4, []),
    ],
)
async def test_a_refusal_that_a_liar_could_make_alone_is_not_believed(
    validators: int, answers: list[str | None]
) -> None:
    """One lying or lagging node ended a client's transaction while the others were silent."""
    assert await outcome(validators, *answers) == (None, len(answers))


@pytest.mark.parametrize(
    ("validators", "answers", "expected"),
    [
        (21, [BUSY] * 21, (None, 7)),
        (4, [BUSY, BUSY, "ok", "ok"], (None, 2)),
        (4, [BUSY, "ok", "ok", "ok"], ("ok", 2)),
        (4, [BUSY, None, None, "ok"], ("ok", 4)),
        (4, [BUSY, "no", "no", "ok"], ("no", 3)),
        (7, [BUSY, "no", BUSY, "no", BUSY, "no", "ok"], (None, 5)),
    ],
)
async def test_a_chain_that_is_busy_is_not_asked_all_around(
    validators: int, answers: list[str | None], expected: tuple[str | None, int]
) -> None:
    """Every submission went to all nodes, two at a time, just when they had too much to do."""
    assert await outcome(validators, *answers) == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([None, NONCE_USED, NONCE_USED, "ok"], None),
        ([NONCE_USED, NONCE_USED, None, None], NONCE_USED),
        ([None, "no", "no", "ok"], "no"),
    ],
)
async def test_who_gave_no_answer_may_have_taken_what_the_others_know_already(
    answers: list[str | None], expected: str | None
) -> None:
    """On a slow machine it took it after its client had given up on it, and was taken for another's."""
    assert (await outcome(4, *answers))[0] == expected
