"""Networks that are broken on purpose: what the checkers must find, to be believed when they find nothing.

The variants of one chain (`sim/pbft/variants.py`) are those of the consortium and the oracle chain here;
beside them are these, each with one rule of the public chain or of the oracles left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from gridtokenx.finality.justifications import Justification, SignedPrecommit, Stage
from gridtokenx.finality.validators import ValidatorSet
from gridtokenx.lab.sim.pbft.variants import variant_named
from gridtokenx.ledger.runtime import Context, Ledger
from gridtokenx.oracle.chain.feeds import Feeds
from gridtokenx.oracle.chain.parameters import FeedSpec
from gridtokenx.oracle.chain.rounds import Feed
from gridtokenx.pbft.replica import Replica
from gridtokenx.public.grandpa.round import CastVote, Round
from gridtokenx.public.grandpa.voter import Justified, Voter
from gridtokenx.public.machine import PublicNode


class _Hasty(Voter):
    """A voter for whom f + 1 precommits are enough."""

    def _finalize(self) -> None:
        for justification in self._weak():
            self._justified_height = justification.target_height
            self._out.append(Justified(justification))
        super()._finalize()

    def _weak(self) -> Iterator[Justification]:
        for round_ in self._ballots.rounds():
            for vote in round_.votes(Stage.PRECOMMIT):
                floor = max(self._chain.finalized.height, self._justified_height)
                shown = self._shown(round_, vote)
                if vote.target.height > floor and len(shown) > self.validators.faulty:
                    yield Justification(
                        round_.number,
                        self.validators.set_id,
                        vote.target.hash,
                        vote.target.height,
                        shown,
                        (),
                    )

    def _shown(self, round_: Round, like: CastVote) -> tuple[SignedPrecommit, ...]:
        return tuple(
            SignedPrecommit(each.voter, each.target.hash, each.target.height, each.signature)
            for each in round_.votes(Stage.PRECOMMIT)
            if each.target == like.target
        )


class FewPrecommits(PublicNode):
    """few-precommits."""

    def _new_voter(self) -> Voter:
        voter = super()._new_voter()
        voter.__class__ = _Hasty
        return voter


class MeanFeeds(Feeds):
    """mean-of-feeds."""

    def _close(self, ctx: Context, spec: FeedSpec, feed: Feed) -> Feed:
        mean = sum(each.value for each in feed.observed) // max(1, len(feed.observed))
        levelled = tuple(replace(each, value=mean) for each in feed.observed)
        return super()._close(ctx, spec, replace(feed, observed=levelled))


def _with_mean(ledger: Ledger) -> None:
    for module in ledger.modules:
        if isinstance(module, Feeds):
            module.__class__ = MeanFeeds


@dataclass(frozen=True, slots=True)
class NetworkVariant:
    """A way to be wrong."""

    replica: type[Replica] = Replica
    rule: Callable[[ValidatorSet], ValidatorSet] = lambda validators: validators
    """How the PBFT chains count a set's votes."""
    validator: type[PublicNode] = PublicNode
    spoil: Callable[[Ledger], None] = lambda _ledger: None
    """What is done to the oracle chain's ledger, for all its nodes and for those who judge."""


def network_variant(name: str) -> NetworkVariant:
    """The variant of a manifest that was checked."""
    match name:
        case "few-precommits":
            return NetworkVariant(validator=FewPrecommits)
        case "mean-of-feeds":
            return NetworkVariant(spoil=_with_mean)
        case _:
            of_chains = variant_named(name)
            return NetworkVariant(replica=of_chains.replica, rule=of_chains.rule)
