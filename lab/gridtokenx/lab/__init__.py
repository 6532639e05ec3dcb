"""The fault lab: local networks, the simulator, faults, checkers and the `gtx` command."""
