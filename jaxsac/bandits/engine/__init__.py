"""How a simulation runs: a cycle at a time, many lanes at once, or a step at a time."""
