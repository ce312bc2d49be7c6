"""One good call of each public function of the room; see `test_faults`."""

import jax.numpy as jnp
import numpy as np

from jaxsac import prox
from jaxsac.prox import Groups, Level

V = np.array([0.7, -1.2, 0.4, 2.0, -0.3, 0.9])
GROUPS = Groups.equal(3, 2)
LEVELS = (Level(Groups.equal(6, 1), 0.2), Level(GROUPS, np.array([0.5, 1.0, 0.7])))
OF_GROUPS = np.array([0.5, 1.0, 0.2])


def call(**arguments):
    return lambda: arguments


CALLS = {
    "Groups": call(num_groups=3, num_coefficients=6, max_size=2),
    "prox.Groups": call(num_groups=3, num_coefficients=6, max_size=2),
    "prox.Penalty": call(levels=LEVELS, l1=0.3, ridge=0.1, nonnegative=False),
    "prox.dual_group_norm": call(v=V, groups=GROUPS, weights=OF_GROUPS),
    "prox.dual_sparse_group_norm": call(v=V, groups=GROUPS, l1=0.3, group=OF_GROUPS),
    "prox.dual_tree_norm": call(v=V, levels=LEVELS),
    "prox.group_norm": call(v=V, groups=GROUPS, weights=OF_GROUPS),
    "prox.group_norms": call(v=V, groups=GROUPS),
    "prox.project_box": call(v=V, lower=-0.5, upper=np.full(6, 0.5)),
    "prox.project_l1_ball": call(v=V, radius=1.5),
    "prox.project_l2_ball": call(v=V, radius=1.5),
    "prox.project_simplex": call(v=V, total=1.5),
    "prox.prox_elastic_net": call(v=V, l1=0.3, l2=0.5),
    "prox.prox_group": call(v=V, groups=GROUPS, threshold=OF_GROUPS),
    "prox.prox_l1": call(v=V, threshold=0.5),
    "prox.prox_sparse_group": call(v=V, groups=GROUPS, l1=0.3, group=OF_GROUPS),
    "prox.prox_tree": call(v=V, levels=LEVELS, scale=0.5),
    "prox.proximal": call(prox=lambda v, step: prox.prox_l1(v, step), learning_rate=0.1),
    "prox.sparse_group_norm": call(v=V, groups=GROUPS, l1=0.3, group=OF_GROUPS),
    "prox.tree_norm": call(v=V, levels=LEVELS),
    "prox.vector_norm": call(v=jnp.asarray(V)),
}
