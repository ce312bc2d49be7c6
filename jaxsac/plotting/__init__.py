"""Plots: axes in, axes out."""

from jaxsac.plotting.figures import (
    COLORS as COLORS,
    color_of as color_of,
    learning_curves as learning_curves,
    methods as methods,
    reliability as reliability,
    strengths as strengths,
)
