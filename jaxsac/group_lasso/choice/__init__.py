"""Which lambda, which groups: criteria, cross-validation, simulation, stability, refits."""
