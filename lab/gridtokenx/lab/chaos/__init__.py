"""Faults in real processes: replicas over TLS and LMDB, killed, stopped, cut off and turned."""
