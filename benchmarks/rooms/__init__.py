"""The benchmarks, one module each: `run(options) -> Report`."""
