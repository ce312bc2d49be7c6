"""Fits that a share of wild records cannot move."""

from jaxsac.control.fits.robust import fit_robust as fit_robust
from jaxsac.control.fits.robust import leverage_weights as leverage_weights
from jaxsac.control.fits.robust import median_of_means as median_of_means
from jaxsac.control.fits.robust import robust_regression as robust_regression
