"""`gtx verify`: whether what lies on a disk is what its own rules make of it, and if not, what to do.

`home` opens any process's home; `chain` judges a chain's store record by record and by re-execution,
with `pbft` and `public` for what each engine keeps; `gateway` judges the index. Each finding is one
line: where, what, and what to do.
"""
