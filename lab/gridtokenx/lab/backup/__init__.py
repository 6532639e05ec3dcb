"""Backups of a process's home: one archive, whole or not at all, and what restoring one means.

`archive` is the file: members, a manifest with a hash of each, a seal. `contents` says what of a home
goes into it, `create` writes one from a running or stopped process, `restore` makes a home of one. Why
a restored node follows before it signs: `docs/decisions/0004-restoring.md`.
"""
