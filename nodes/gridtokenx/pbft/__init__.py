"""The PBFT replica, a pure machine: used by the consortium chain and by the oracle chain."""
