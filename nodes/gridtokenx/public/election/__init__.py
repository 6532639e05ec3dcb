"""Who validates: proportional elections in exact integers, which know nothing of staking."""
