"""A local testnet: laid out on disk, started as real processes, watched, stopped."""
