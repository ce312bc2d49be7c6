"""Learning while the log grows: epochs of warm fits, exploration, dual averaging."""

from jaxsac.control.fits.online import (
    DualAverage as DualAverage,
    Learner as Learner,
    dual_average as dual_average,
    dual_average_step as dual_average_step,
    explore as explore,
    start_learner as start_learner,
    update_learner as update_learner,
)
