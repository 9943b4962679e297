"""Losses, updates, and the loop that training stages share."""
