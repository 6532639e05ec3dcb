"""The relayer as pure code: what to carry between chains, and when."""
