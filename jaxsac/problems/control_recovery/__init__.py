"""Sparse regressions on dense designs and on budgeted actions."""

from jaxsac.problems.control_recovery.regressions import (
    Regression as Regression,
    gaussian_regression as gaussian_regression,
    random_actions as random_actions,
    rotated_regression as rotated_regression,
    sphere as sphere,
)
