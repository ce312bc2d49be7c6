"""Many tools under partial observation, with exact beliefs and lossy compressors of them."""

from jaxsac.problems.control_pomdp.pomdp import (
    Episode as Episode,
    ToolPOMDP as ToolPOMDP,
    compress as compress,
    error_bound as error_bound,
    repair_problem as repair_problem,
    rollout as rollout,
)
