"""The sub-commands of `gtx`, one file each, loaded only when used."""
