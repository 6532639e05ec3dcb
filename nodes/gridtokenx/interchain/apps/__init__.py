"""What travels between chains: one file per port, holding its payloads and their bounds."""
