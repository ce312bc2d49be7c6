"""The budgeted likelihood: evaluation, steps, certificate, solver."""
