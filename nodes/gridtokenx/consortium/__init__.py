"""The energy chain: participants, market, settlement."""
