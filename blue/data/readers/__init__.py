"""One file a format: raw files become a log."""
