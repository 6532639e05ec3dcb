"""The oracle network: signed measurements in, certified outcomes out."""
