"""Tables from samples: the sampled operator, Q-learning, recorded trajectories."""
