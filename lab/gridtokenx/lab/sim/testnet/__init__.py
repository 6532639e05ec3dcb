"""The whole network in virtual time: chains, relayers, oracles, devices, agents, one process."""
