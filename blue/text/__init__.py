"""Texts that models read, and tokenizers."""
