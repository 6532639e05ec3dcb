"""What a light client believes, and why: validator sets, certificates, justifications."""
