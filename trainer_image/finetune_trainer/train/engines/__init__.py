"""Strategies: one engine each, behind the protocol in `engine`."""
