"""Base of the sections of the genesis file: named fields in JSON, never on the wire."""

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of parameters; an unknown key is refused, so no typing error becomes a default."""
