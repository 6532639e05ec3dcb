"""Whatever members and strangers say, in whatever order: a plain tally predicts what happens."""

from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.interchain_chains import BLOCK_MS, public_and_consortium, seed_signers
from tests.stages import examples
from tests.unit.test_interchain_council import CLIENT, DELAY_MS, PERIOD_MS, freeze, members

from gridtokenx.core.quorum import quorum
from gridtokenx.interchain import stores
from gridtokenx.interchain.council import ApproveRecovery, RecoverClient

SPEAKERS = st.integers(0, 5)
"""0 to 3 are members, the others strangers."""
STEPS = st.lists(
    st.tuples(SPEAKERS, st.integers(0, 1), st.sampled_from((BLOCK_MS, DELAY_MS // 2))),
    max_size=12,
)


AGREEING = [(speaker, 0, BLOCK_MS) for speaker in range(3)]
WAITING = [(4, 0, DELAY_MS // 2)] * 3


@given(STEPS)
@example([*AGREEING, *WAITING])
@example([*AGREEING, (0, 1, BLOCK_MS), *WAITING, (3, 0, BLOCK_MS), *WAITING])
@settings(max_examples=examples(60), deadline=None)
def test_a_client_recovers_exactly_when_a_quorum_has_stood_for_the_delay(
    steps: list[tuple[int, int, int]],
) -> None:
    link = public_and_consortium(trusting_period_ms=PERIOD_MS)
    freeze(link)
    link.right.block()
    public, true = link.left, link.right.head.header
    headers = (true, structs.replace(true, round=9))
    speakers = [*members(public), *seed_signers("strangers", 2)]
    voices: dict[int, int] = {}
    since_ms: dict[int, int] = {}
    for speaker, choice, after_ms in steps:
        call = ApproveRecovery(CLIENT, headers[choice].hash)
        public.block(call, by=speakers[speaker], after_ms=after_ms)
        if speaker < 4:
            voices[speaker] = choice
        tally = Counter(voices.values())
        for each in (0, 1):
            if tally[each] < quorum(4):
                since_ms.pop(each, None)
            else:
                since_ms.setdefault(each, public.now_ms)
        public.block(RecoverClient(CLIENT, headers[choice], link.right.sets[0]))
        stood_ms = public.now_ms - since_ms.get(choice, public.now_ms)
        client = stores.CLIENTS.get(public.state, CLIENT)
        assert client is not None
        assert client.frozen == (choice not in since_ms or stood_ms < DELAY_MS)
        if not client.frozen:
            assert client.latest_hash == headers[choice].hash
            return
