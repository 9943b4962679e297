"""What the text of a compiled XLA module tells of its cost."""
