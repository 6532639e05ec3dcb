"""Settlement: contracts in full, the rest at the utility's prices, corrections as new lines."""
