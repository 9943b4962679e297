"""Losses, updates and what training stages share around their loop."""
