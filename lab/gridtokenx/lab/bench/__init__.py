"""Benchmarks: measured beside a reference in the same run, never asserted by a test."""
