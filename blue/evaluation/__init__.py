"""Whom an evaluation is about, against what, ranked how, with which intervals."""
