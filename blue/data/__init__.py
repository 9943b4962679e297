"""Interaction logs, and the examples that are cut from them."""
