"""The float32 model of a working set: quadratic, block descent, Newton steps in JAX and NumPy."""
