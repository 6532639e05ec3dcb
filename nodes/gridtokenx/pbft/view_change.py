"""View changes as mathematics: what is a valid one, and what must the new view propose again.

Law of the file: **whatever may have been committed is proposed again, byte for byte.** Pure
functions of signed messages: the new primary computes the choice, every backup computes it again.

Theory: Castro & Liskov (OSDI 1999) section 4.4, the signed variant. If a block was committed at
(view v, height n), a quorum prepared it there. Any quorum of view-changes shares an honest replica
with that quorum, which says so in its P, or says in its C that n is committed. No other block can
be prepared at n in v or later: in v because two quorums share an honest replica, later by induction
over this very rule. So per height the prepared certificate of the highest view is the only one that
can matter.

::

    base   = highest certified head in V                   (the paper's min-s)
    for n = base + 1, base + 2, ...
        take the certificate for n of the highest view in any P of V   (all of V: fabric #1111)
        stop where there is none, or where it does not extend what was taken before

Ours differs: prepares are chained (a replica prepares n + 1 only upon a prepared or committed
parent), so honest Ps have no gaps and what lies beyond the first gap, or beyond a break in the
chain, cannot have been committed. The paper's null requests never exist. And every committed block
is a stable checkpoint, because its certificate proves the state: C is one certified header of the
view's own set. Who has committed none in it stands on the term's root, as everybody does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from gridtokenx.core.errors import RemoteFault
from gridtokenx.finality.certificates import IndexedSignature
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.ledger.blocks import Header
from gridtokenx.pbft.messages import (
    MAX_WINDOW,
    Ballot,
    NewViewBody,
    PreparedCertificate,
    ViewChange,
    ViewChangeBody,
)
from gridtokenx.pbft.rotation import Periods, primary_of

_ONE_PERIOD: Final = Periods()


class ViewChangeFault(RemoteFault):
    """A view-change or new-view that breaks a rule; `reason` names it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a new view starts from."""

    base: int
    """The highest height that is proved committed; nothing may be proposed at or below it."""
    headers: tuple[Header, ...]
    """Blocks to propose again at base + 1, base + 2, ..."""

    @property
    def fresh_from(self) -> int:
        """The first height at which the new primary may propose a block of its own."""
        return self.base + len(self.headers) + 1


NOTHING: Final = Choice(0, ())
"""The choice of view 0 on a new chain."""


def choose(view_changes: Sequence[ViewChangeBody], root: Header) -> Choice:
    """What the new view proposes again; see the head of the file.

    Args:
        view_changes: a quorum's bodies, each valid by `check_view_change`.
        root: the block that the set's term stands on, which needs no certificate; see `terms.py`.
    """
    tip = max((head_of(body, root) for body in view_changes), key=lambda h: (h.height, h.hash))
    base = tip.height
    best = _highest_views(view_changes)
    headers: list[Header] = []
    while (found := best.get(tip.height + 1)) is not None and found.header.parent == tip.hash:
        tip = found.header
        headers.append(tip)
    return Choice(base, tuple(headers))


def head_of(body: ViewChangeBody, root: Header) -> Header:
    """The last block that the author proves committed."""
    return root if body.head is None else body.head.header


def _highest_views(view_changes: Iterable[ViewChangeBody]) -> dict[int, PreparedCertificate]:
    """Per height the prepared certificate of the highest view.

    Two of the same view and height name the same block unless more than f replicas are faulty; the
    hash only makes the choice the same everywhere even then.
    """
    best: dict[int, PreparedCertificate] = {}
    for body in view_changes:
        for certificate in body.prepared:
            height = certificate.header.height
            known = best.get(height)
            if known is None or _rank(certificate) > _rank(known):
                best[height] = certificate
    return best


def _rank(certificate: PreparedCertificate) -> tuple[int, bytes]:
    return certificate.view, certificate.header.hash


# -- validity --------------------------------------------------------------------------------------


def check_prepared(certificate: PreparedCertificate, validators: ValidatorSet) -> None:
    """All rules of a prepared certificate but its signatures (section 4.2).

    Raises:
        ViewChangeFault: wrong set, no quorum, an unknown or repeated voter, or the primary among
            the backups.
    """
    header = certificate.header
    if header.set_id != validators.set_id:
        raise ViewChangeFault("wrong-set", f"prepared by set {header.set_id}")
    if header.round > certificate.view:
        raise ViewChangeFault("bad-view", "prepared before it was first proposed")
    _check_indices(certificate.prepares, validators)
    primary = primary_of(certificate.view, validators)
    if any(signed.index == primary for signed in certificate.prepares):
        raise ViewChangeFault("primary-prepared", "the primary's pre-prepare is its only vote")
    if len(certificate.prepares) + 1 < validators.quorum:
        raise ViewChangeFault(
            "below-quorum", f"{len(certificate.prepares)} prepares, {validators.quorum - 1} needed"
        )


def check_view_change(
    body: ViewChangeBody, validators: ValidatorSet, periods: Periods = _ONE_PERIOD
) -> None:
    """All rules of a view-change but its signatures and the certificate of its head.

    Args:
        body: what its author says.
        validators: the set of the view.
        periods: of the set's term.

    Raises:
        ViewChangeFault: wrong set or author, heights out of order or out of the window, a
            certificate from the new view or later, or one that breaks its own rules; a view of
            another period than that of the height above the head.
    """
    if body.set_id != validators.set_id:
        raise ViewChangeFault("wrong-set", f"set {body.set_id}, ours is {validators.set_id}")
    if body.replica >= validators.size:
        raise ViewChangeFault("unknown-replica", f"index {body.replica} of {validators.size}")
    if body.view == 0:
        raise ViewChangeFault("bad-view", "nobody changes to view 0")
    if body.head is not None and body.head.header.set_id != validators.set_id:
        raise ViewChangeFault("wrong-set", f"its head is of set {body.head.header.set_id}")
    head = periods.root if body.head is None else body.head.header.height
    if not periods.covers(body.view, head + 1):
        raise ViewChangeFault("wrong-period", f"view {body.view} decides nothing above {head}")
    heights = [certificate.header.height for certificate in body.prepared]
    if any(later <= earlier for earlier, later in pairwise([head, *heights])):
        raise ViewChangeFault("bad-heights", "prepared heights do not ascend above the head")
    if heights and heights[-1] > head + MAX_WINDOW:
        raise ViewChangeFault("bad-heights", f"height {heights[-1]} is beyond the window")
    for certificate in body.prepared:
        if certificate.view >= body.view:
            raise ViewChangeFault("bad-view", f"prepared in view {certificate.view}, not before")
        if not periods.covers(certificate.view, certificate.header.height):
            raise ViewChangeFault("wrong-period", f"prepared in view {certificate.view}")
        check_prepared(certificate, validators)


def check_new_view(
    body: NewViewBody, validators: ValidatorSet, root: Header, rotation_blocks: int = 0
) -> Choice:
    """All rules of a new-view but signatures; recomputes the choice (section 4.4).

    Args:
        body: what the new primary says.
        validators: the set of the view.
        root: the block that the set's term stands on.
        rotation_blocks: heights of a period; see `rotation.py`.

    Returns:
        The choice, which the proposals match exactly.

    Raises:
        ViewChangeFault: not a quorum of valid view-changes to this view, or other proposals than
            the view-changes demand.
    """
    if body.set_id != validators.set_id:
        raise ViewChangeFault("wrong-set", f"set {body.set_id}, ours is {validators.set_id}")
    authors = [change.body.replica for change in body.view_changes]
    if any(later <= earlier for earlier, later in pairwise(authors)):
        raise ViewChangeFault("duplicate-replica", "view-changes are not strictly increasing")
    if len(authors) < validators.quorum:
        raise ViewChangeFault("below-quorum", f"{len(authors)} view-changes")
    for change in body.view_changes:
        if change.body.view != body.view:
            raise ViewChangeFault("bad-view", f"a view-change to {change.body.view}")
        check_view_change(change.body, validators, Periods(root.height, rotation_blocks))
    choice = choose([change.body for change in body.view_changes], root)
    if tuple(proposal.ballot for proposal in body.proposals) != ballots(choice, body.view):
        raise ViewChangeFault("wrong-choice", "its proposals are not what its view-changes demand")
    return choice


def ballots(choice: Choice, view: int) -> tuple[Ballot, ...]:
    """What the new primary must propose again."""
    return tuple(
        Ballot(set_id=header.set_id, view=view, height=header.height, block_hash=header.hash)
        for header in choice.headers
    )


def select_quorum(
    changes: Iterable[ViewChange], view: int, validators: ValidatorSet
) -> tuple[ViewChange, ...] | None:
    """A quorum of view-changes to exactly `view`, by index; None if there are too few."""
    fitting = sorted(
        (change for change in changes if change.body.view == view), key=lambda c: c.body.replica
    )
    if len(fitting) < validators.quorum:
        return None
    return tuple(fitting[: validators.quorum])


def _check_indices(signatures: Sequence[IndexedSignature], validators: ValidatorSet) -> None:
    indices = [signed.index for signed in signatures]
    if any(later <= earlier for earlier, later in pairwise(indices)):
        raise ViewChangeFault("duplicate-replica", "signers are not strictly increasing")
    if indices and indices[-1] >= validators.size:
        raise ViewChangeFault("unknown-replica", f"index {indices[-1]} of {validators.size}")
