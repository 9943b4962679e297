"""Every text that a model reads, and the tokens it is made of."""
