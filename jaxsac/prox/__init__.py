"""Groups of coefficients, penalties, their dual norms and proximal operators, projections, and one
optax transformation.
"""

from jaxsac.prox.groups import (
    Groups as Groups,
    group_norms as group_norms,
    vector_norm as vector_norm,
)
from jaxsac.prox.norms import (
    dual_group_norm as dual_group_norm,
    dual_sparse_group_norm as dual_sparse_group_norm,
    dual_tree_norm as dual_tree_norm,
    group_norm as group_norm,
    sparse_group_norm as sparse_group_norm,
    tree_norm as tree_norm,
)
from jaxsac.prox.operators import (
    Level as Level,
    project_box as project_box,
    project_l1_ball as project_l1_ball,
    project_l2_ball as project_l2_ball,
    project_simplex as project_simplex,
    prox_elastic_net as prox_elastic_net,
    prox_group as prox_group,
    prox_l1 as prox_l1,
    prox_sparse_group as prox_sparse_group,
    prox_tree as prox_tree,
)
from jaxsac.prox.penalty import Penalty as Penalty
from jaxsac.prox.transform import ProximalState as ProximalState, proximal as proximal
