"""Decoders, their families, and what is computed with them."""
