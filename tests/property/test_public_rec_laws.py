"""Certificates under any sequence of attestations, transfers and claims: the books of a dict."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.public_ledger import World, account, attested, key
from tests.stages import examples

from gridtokenx.core.units import GRID
from gridtokenx.public import rec
from gridtokenx.public.rec import Retire, TransferCertificate, certificate_id

PEOPLE = st.sampled_from(["alice", "bob", "nina"])
DEVICES = st.sampled_from(["roof", "shed"])
INTERVALS = st.integers(0, 2)
AMOUNTS = st.integers(1, 300)
ATTEST = st.tuples(st.just("attest"), DEVICES, INTERVALS, AMOUNTS, PEOPLE)
MOVE = st.tuples(st.just("move"), DEVICES, INTERVALS, AMOUNTS, PEOPLE, PEOPLE)
RETIRE = st.tuples(st.just("retire"), DEVICES, INTERVALS, AMOUNTS, PEOPLE)
STEPS = st.lists(ATTEST | MOVE | RETIRE, max_size=12)


@settings(max_examples=examples(25), deadline=None)
@given(STEPS)
def test_every_wh_is_issued_once_and_claimed_at_most_once(steps: list[tuple]) -> None:
    world = World()
    issued, held, retired = dict[bytes, int](), Counter[tuple[bytes, str]](), Counter[str]()
    for kind, device, interval, energy_wh, who, *rest in steps:
        attestation = attested(device, interval, energy_wh, who)
        name = certificate_id(attestation.device, attestation.interval)
        if kind == "attest":
            world.attest(attestation)
            if name not in issued:
                issued[name] = energy_wh
                held[name, who] += energy_wh
            continue
        possible = held[name, who] >= energy_wh
        if kind == "move":
            call = TransferCertificate(name, key(rest[0]), energy_wh)
        else:
            call = Retire(name, energy_wh, "a brewery", "")
        code = world.public.block(call, by=account(who), fee=GRID)
        assert code == (["ok"] if possible else ["insufficient-energy"])
        if possible:
            held[name, who] -= energy_wh
            held[name, rest[0] if rest else ""] += energy_wh if rest else 0
            retired[who] += 0 if rest else energy_wh
    state = world.public.state
    for (name, who), energy_wh in held.items():
        if who:
            assert rec.HOLDINGS.read(state, 0, name, key(who)) == energy_wh
    for who in ("alice", "bob", "nina"):
        totals = rec.ACCOUNTS.read(state, rec.NO_ENERGY, key(who))
        assert totals.retired_wh == retired[who]
    assert rec.TOTALS.get(state) == rec.Totals(sum(issued.values()), retired.total())
