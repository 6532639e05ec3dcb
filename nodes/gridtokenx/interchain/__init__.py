"""One protocol between all chains: light clients, packets, acknowledgements, timeouts."""
