"""What is computed: the exact operator, its fixed point, and the tables of the kinds of models."""
