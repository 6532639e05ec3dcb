"""The nominated proof-of-stake chain: slots, finality, election, staking, and its ledger modules."""
