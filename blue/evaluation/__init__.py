"""Evaluation: users, methods, protocols, metrics with intervals, and reports."""
