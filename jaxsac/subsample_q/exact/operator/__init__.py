"""The exact expectation over one move of all agents: its plan, use, derivative and test."""
