"""How good an executed policy is: bounds, its exact value, certificates."""
