"""Ways to solve the problem, each behind the same four words."""
