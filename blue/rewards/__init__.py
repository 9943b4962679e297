"""What a profile earns: reward functions, judges, advantages."""
