"""What submissions read of a state is remembered until the next block, and no more than so much of it."""

import pytest
from tests.simulation.pbft_cluster import CLIENTS, transfer
from tests.simulation.pbft_script import Members

from gridtokenx.ledger.pool import Pool
from gridtokenx.ledger.runtime import InvalidTransaction
from gridtokenx.pbft import requests as module
from gridtokenx.pbft.requests import Requests

FOUR = Members(4)
NOBODY = bytes(32)


def test_a_block_replaces_all_that_was_remembered() -> None:
    requests, head = Requests(FOUR.ledger, Pool()), FOUR.genesis
    assert requests.add(head, transfer(0, 0), 0)
    after = FOUR.block(transactions=[transfer(0, 0)])
    requests.committed(after, NOBODY, 1_000)
    with pytest.raises(InvalidTransaction, match="next nonce is 1"):
        requests.add(after, transfer(0, 0), 1_000)
    assert requests.add(after, transfer(0, 1), 1_000)


def test_it_is_bounded_beyond_what_the_block_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    block = FOUR.block(transactions=[transfer(n, 0) for n in range(len(CLIENTS))])
    requests = Requests(FOUR.ledger, Pool())
    requests.committed(block, NOBODY, 0)
    for nonce in (1, 2):
        for client in range(len(CLIENTS)):
            assert requests.add(block, transfer(client, nonce), 0)
            state = requests._state
            assert state is not None
            assert state.remembered <= len(block.changes) + 2 + 4, (
                "one transaction reads a few more"
            )
