"""Problems, experiments and tables that the benchmarks are made of."""
