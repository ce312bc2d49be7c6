"""Learning while the log grows: epochs of warm fits, exploration, dual averaging."""

from jaxsac.control.fits.online import DualAverage as DualAverage
from jaxsac.control.fits.online import Learner as Learner
from jaxsac.control.fits.online import dual_average as dual_average
from jaxsac.control.fits.online import dual_average_step as dual_average_step
from jaxsac.control.fits.online import explore as explore
from jaxsac.control.fits.online import start_learner as start_learner
from jaxsac.control.fits.online import update_learner as update_learner
