"""PBFT chains in the simulator: the chain under test, its traitors, its checkers, broken variants."""
