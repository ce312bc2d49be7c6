"""Many trials of anything, and their summary."""

from jaxsac.trials.run import run_trials as run_trials
from jaxsac.trials.summary import Summary as Summary, summarise as summarise
