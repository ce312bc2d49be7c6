"""The forms of that expectation, and the pivots of two of them."""
