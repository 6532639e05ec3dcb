"""What all replicas of a run find out about one message: which signatures it stands on.

Law of the file: **shared is only what the real replica would find itself, from the same message and the
same term.** One message goes to all, the same object, and is sent again for as long as it matters; a
view-change or new-view holds dozens of signatures, each with the exact bytes that it covers. So the
first replica that asks works it out, by the real code, and the others of the same term are told.

What depends on more than that (a vote that is of no use here, handovers in a snapshot, a set that is
not known yet, a refusal) everybody works out alone.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from gridtokenx.core.codec import Wire
from gridtokenx.core.machine import SignatureCheck, Unknown
from gridtokenx.pbft.messages import NewView, Transactions, ViewChange
from gridtokenx.pbft.replica import Replica
from gridtokenx.pbft.terms import Term

_KEPT: Final = 4_096


class _Found(NamedTuple):
    """One answer, and all that it follows from."""

    message: Wire
    """Kept alive, so that nothing else can have its identity."""
    asked: type[Replica]
    """By which rules."""
    term: Term | None
    """Of the message's set; None if it is of none."""
    checks: Sequence[SignatureCheck]


SharedChecks = dict[int, _Found]
"""What the replicas of one run found, by the identity of messages."""


class Sharing(Replica):
    """The real replica, one of many in a process."""

    shared: SharedChecks
    """Of the run."""

    def verification(self, message: Wire) -> Sequence[SignatureCheck] | Unknown:
        """See `Machine.verification`."""
        kind = type(message)
        if kind is not Transactions and kind is not ViewChange and kind is not NewView:
            return super().verification(message)
        found = self.shared.get(id(message))
        if found is not None and found.asked is type(self) and self._applies(found):
            return found.checks
        checks = super().verification(message)
        if not isinstance(checks, Unknown):
            self._share(message, checks)
        return checks

    def _applies(self, found: _Found) -> bool:
        """Whether it would be this replica's own answer."""
        if found.term is None:
            transactions = cast("Transactions", found.message).transactions
            return not any(map(self._requests.knows, transactions))
        term = self._terms.get(found.term.set_id)
        return term is not None and _are_equal(term, found.term)

    def _share(self, message: Wire, checks: Sequence[SignatureCheck]) -> None:
        match message:
            case Transactions(transactions) if len(checks) == len(transactions):
                term = None  # none of them waits here
            case ViewChange(body):
                term = self._terms[body.set_id]
            case NewView(body) if all(c.body.set_id == body.set_id for c in body.view_changes):
                term = self._terms[body.set_id]
            case _:
                return
        if len(self.shared) >= _KEPT:
            self.shared.clear()
        self.shared[id(message)] = _Found(message, type(self), term, checks)


_MADE: Final[dict[type[Replica], type[Sharing]]] = {}


def _are_equal(one: Term, other: Term) -> bool:
    """As `==`, but most are made of the same parts."""
    return (one.validators is other.validators or one.validators == other.validators) and (
        one.root is other.root or one.root == other.root
    )


def sharing(replica: type[Replica]) -> type[Sharing]:
    """The same replica, or broken replica, that shares."""
    made = _MADE.get(replica)
    if made is None:
        made = cast("type[Sharing]", type(replica.__name__, (Sharing, replica), {}))
        _MADE[replica] = made
    return made
