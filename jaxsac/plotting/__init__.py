"""Plots: axes in, axes out."""

from jaxsac.plotting.figures import (
    learning_curves as learning_curves,
    methods as methods,
    reliability as reliability,
    strengths as strengths,
)
