"""What carries packets between the chains: a pure relayer and its process."""
