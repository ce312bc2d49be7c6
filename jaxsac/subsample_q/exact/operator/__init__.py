"""The exact expectation over one move of all agents: its plan, its use, its derivative, its test."""
