"""GRANDPA, the finality gadget of the public chain: vote graph, round, voter."""
