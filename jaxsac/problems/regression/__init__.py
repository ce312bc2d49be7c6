"""Group-sparse regression and classification with correlated columns."""

from jaxsac.problems.regression.groups import (
    GroupRegression as GroupRegression,
    ar1_design as ar1_design,
    group_classification as group_classification,
    group_regression as group_regression,
)
