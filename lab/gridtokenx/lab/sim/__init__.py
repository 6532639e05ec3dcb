"""The simulator: the machines of the real processes, in virtual time."""
