"""Processes of the field: many devices in one process, their broker, their owners' agents."""
