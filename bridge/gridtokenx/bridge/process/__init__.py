"""The relayer as a process: it follows the chains, drives the pure relayer, and signs."""
