"""What the three chains share: transactions, blocks, state, module runtime, tokens, pool."""
