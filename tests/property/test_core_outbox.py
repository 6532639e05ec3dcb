"""The outbox rule: nothing visible overtakes a Persist that was emitted before it."""

from hypothesis import given
from hypothesis import strategies as st

from gridtokenx.core.codec import Wire
from gridtokenx.core.machine import Broadcast, Log, Persist, Visible
from gridtokenx.core.outbox import Outbox
from gridtokenx.core.types import UInt63


class Note(Wire, frozen=True):
    number: UInt63


scripts = st.lists(st.one_of(st.just("persist"), st.just("say"), st.just("log"), st.just("done")))


@given(scripts)
def test_visible_effects_wait_for_every_earlier_persist_and_keep_their_order(script) -> None:
    outbox, number = Outbox(), 0
    emitted: list[object] = []
    durable = 0
    left: list[object] = []
    for word in script:
        if word == "done":
            if outbox.undurable:
                durable += 1
                left += outbox.durable()
        else:
            number += 1
            effect = {
                "persist": Persist(()),
                "say": Broadcast(Note(number=number)),
                "log": Log("info", str(number)),
            }[word]
            emitted.append(effect)
            left += outbox.push([effect])
        said = [effect for effect in left if isinstance(effect, Visible)]
        allowed: list[object] = []
        barriers = 0
        for effect in emitted:
            if isinstance(effect, Persist):
                barriers += 1
            elif isinstance(effect, Visible) and barriers <= durable:
                allowed.append(effect)
        assert said == allowed
        assert outbox.undurable == sum(isinstance(e, Persist) for e in emitted) - durable


def test_timers_and_logs_never_wait() -> None:
    outbox = Outbox()
    outbox.push([Persist(())])
    assert outbox.push([Log("info", "x")]) == [Log("info", "x")]
