"""Stake, nominations, and the set of validators that they elect for each era."""

from gridtokenx.public.staking.ballots import (
    Backing,
    Candidate,
    Elected,
    Nomination,
    Seat,
    elect_at_genesis,
)
from gridtokenx.public.staking.calls import ValidatorElected
from gridtokenx.public.staking.module import GRID_DENOM, PURPOSE, Staking, StakingRules

__all__ = [
    "GRID_DENOM",
    "PURPOSE",
    "Backing",
    "Candidate",
    "Elected",
    "Nomination",
    "Seat",
    "Staking",
    "StakingRules",
    "ValidatorElected",
    "elect_at_genesis",
]
