"""The compiled loop: accelerated proximal gradient steps, rounds before them, batches of lanes."""
