"""Fits that a share of wild records cannot move."""

from jaxsac.control.fits.robust import (
    fit_robust as fit_robust,
    leverage_weights as leverage_weights,
    median_of_means as median_of_means,
    robust_regression as robust_regression,
)
