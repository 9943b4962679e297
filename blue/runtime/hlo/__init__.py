"""What the text of a compiled XLA module says about its cost."""
