"""Global agents above many local ones."""

from jaxsac.problems.subsample_q.models import (
    GlobalLocal as GlobalLocal,
    LocalActions as LocalActions,
    admission as admission,
    constrained_exploration as constrained_exploration,
    demand_response as demand_response,
    dispatch as dispatch,
    gaussian_squeeze as gaussian_squeeze,
    mode_tracking as mode_tracking,
    power_of_k as power_of_k,
    random as random,
)
