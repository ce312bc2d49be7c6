"""The fixed point of an expectation: what ends the loop, how it is accelerated, its derivative."""
