def differentiable_expectation(model: Model, values: jax.Array, plan: Plan) -> jax.Array:
    """`expectation` of the model itself, with a derivative in the local transitions that is right
    for every kernel and every form.

        d E[W(h') | h] = E[dW(h') | h] + sum_{i,j} h_i dP_ij E_{k-1}[W(h' + e_j) | h - e_i]

    (each agent in i takes the perturbed step while the k-1 others move). The operator is linear in
    each agent's row, so this holds for equal and dependent rows too, where a pivot order cannot be
    differentiated. In directions that change the sum of a row it is the derivative of that
    polynomial, as of the dense kernel. Second derivatives that would pass through the pivots are
    refused.
    """
    G, A, L = model.num_global_states, model.num_actions, model.num_local_states
    transition = model.global_transition
    kernels = model.local_transition.reshape(-1, L, L)
    if model.action_drives_agents or A < G:
        columns = jnp.einsum("gac,cn->gan", transition, values, precision="highest")
        moved = moved_columns(kernels, columns.reshape(kernels.shape[0], -1, values.shape[1]), plan)
        return (
            moved.reshape(G, A, -1).transpose(0, 2, 1)
            if model.action_drives_agents
            else moved.transpose(0, 2, 1)
        )
    moved = moved_columns(
        kernels, jnp.broadcast_to(values, (kernels.shape[0], *values.shape)), plan
    )
    return jnp.einsum("gac,gcn->gna", transition, moved, precision="highest")


@jax.custom_jvp
def moved_columns(kernels: jax.Array, columns: jax.Array, plan: Plan) -> jax.Array:
    """E[W(h') | h] of each kernel [K, L, L] for its own W = columns [K, C, N]: [K, C, N]."""
    return apply_tables(
        kernel_tables(kernels if plan.backend == "dense" else _sealed(kernels), plan),
        columns,
        plan,
        kernels.shape[-1],
    )


def apply_tables(tables: Any, columns: jax.Array, plan: Plan, num_local_states: int) -> jax.Array:
    """As `moved_columns`, of kernels whose tables are there; not to be differentiated by the
    kernels.
    """
    return _each(
        plan, lambda table, own: _apply(table, own, plan, num_local_states).T, tables, columns
    )


@jax.custom_jvp
def _sealed(kernels: jax.Array) -> jax.Array:
    """The kernels, where pivots are about to use them: a derivative that gets here would be wrong,
    so it stops here.

    Reverse mode inlines the rule of `moved_columns`, and a second derivative of that would go
    through the pivots.
    """
    return kernels


@functools.partial(_sealed.defjvp, symbolic_zeros=True)
def _sealed_jvp(primals, tangents):
    _checks.require(
        isinstance(tangents[0], SymbolicZero),
        "Second derivatives in local_transition need the dense form: pass plan=subsample_q.plan(model, k, backend='dense').",
    )
    return primals[0], jnp.zeros_like(primals[0])


@functools.partial(moved_columns.defjvp, symbolic_zeros=True)
def _moved_columns_jvp(primals, tangents):
    kernels, columns, plan = primals
    kernels_dot, columns_dot, _ = tangents
    out = moved_columns(kernels, columns, plan)
    out_dot = jnp.zeros_like(out)
    if not isinstance(columns_dot, SymbolicZero):
        out_dot = out_dot + moved_columns(kernels, columns_dot, plan)
    if not isinstance(kernels_dot, SymbolicZero):
        out_dot = out_dot + _perturbed(kernels, kernels_dot, columns, plan)
    return out, out_dot


def _perturbed(
    kernels: jax.Array, direction: jax.Array, columns: jax.Array, plan: Plan
) -> jax.Array:
    """sum_{i,j} h_i dP_ij E_{k-1}[W(h' + e_j) | h - e_i]: [K, C, N], linear in the direction [K, L,
    L].
    """
    (K, C, _), L, k = columns.shape, kernels.shape[-1], plan.k
    after = jnp.stack(
        [columns[..., additions(k, L, j)] for j in range(L)], axis=1
    )  # [K, L, C, N_{k-1}]
    if k > 1:
        others = dataclasses.replace(plan, k=k - 1, entry=None, leave=None)
        after = moved_columns(kernels, after.reshape(K, L * C, -1), others).reshape(after.shape)
    counts = enumerate_counts(k, L)
    total = jnp.zeros_like(columns)
    for i in range(L):
        moved = jnp.einsum("kj,kjcn->kcn", direction[:, i], after, precision="highest")
        total = (
            total
            + jnp.asarray(counts[None, None, :, i], columns.dtype) * moved[..., removals(k, L, i)]
        )
    return total


