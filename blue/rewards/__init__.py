"""Rewards of profiles: functions, their inputs, judges, advantages."""
