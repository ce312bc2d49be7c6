"""What is given: the models, histograms of agents, and draws of them."""
