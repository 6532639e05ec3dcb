"""Entry points of chain nodes: a public validator, a consortium replica."""
