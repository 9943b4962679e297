"""Text in; profiles, vectors and log-probabilities out."""
