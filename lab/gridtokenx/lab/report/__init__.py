"""Reports of simulated runs: one page that needs nothing else, and files for other programs."""
