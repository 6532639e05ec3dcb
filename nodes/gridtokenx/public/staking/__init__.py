"""Stake, nominations, and the set of validators that they elect for each era."""

from gridtokenx.public.staking.ballots import (
    Backing,
    Candidate,
    Elected,
    Nomination,
    Seat,
    elect_at_genesis,
)
from gridtokenx.public.staking.calls import (
    Bond,
    Chill,
    EraBegan,
    Nominate,
    SetSessionKey,
    Stand,
    Unbond,
    ValidatorElected,
    Withdraw,
    prove_session_key,
)
from gridtokenx.public.staking.module import GRID_DENOM, PURPOSE, Staking, StakingRules

__all__ = [
    "GRID_DENOM",
    "PURPOSE",
    "Backing",
    "Bond",
    "Candidate",
    "Chill",
    "Elected",
    "EraBegan",
    "Nominate",
    "Nomination",
    "Seat",
    "SetSessionKey",
    "Staking",
    "StakingRules",
    "Stand",
    "Unbond",
    "ValidatorElected",
    "Withdraw",
    "elect_at_genesis",
    "prove_session_key",
]
