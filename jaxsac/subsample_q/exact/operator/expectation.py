def _map(function, *args):
    """One kernel after the other on a CPU, where the working set of one fits in cache; all at once
    elsewhere.
    """
    if jax.default_backend() == "cpu":
        return lax.map(lambda arg: function(*arg), args)
    return jax.vmap(function)(*args)


class Operator(NamedTuple):
    """The expectation of one model, made ready: per-kernel tables and the global transitions."""

    tables: Any
    global_transition: jax.Array


def prepare(model: Model, plan: Plan) -> Operator:
    """Tables of every kernel; leading axis G (or G·A where actions drive the agents)."""
    L = model.num_local_states
    return Operator(
        kernel_tables(model.local_transition.reshape(-1, L, L), plan), model.global_transition
    )


def kernel_tables(kernels: jax.Array, plan: Plan) -> Any:
    """What the form of `plan` needs of each kernel [K, L, L], made once."""
    L = kernels.shape[-1]
    if plan.backend == "dense":
        return jax.vmap(lambda kernel: dense_kernel(kernel, plan.k))(kernels)
    if plan.backend == "lumped":
        assert plan.classes is not None
        make = functools.partial(
            prepare_lumped, k=plan.k, num_classes=plan.num_classes, by_rows=plan.by_rows
        )
        return jax.vmap(make)(kernels, plan.classes.reshape(-1, L))
    assert plan.rows is not None and plan.columns is not None and plan.replacements is not None
    pivots = (
        plan.rows.reshape(-1, L),
        plan.columns.reshape(-1, L),
        plan.replacements.reshape(-1, L, L),
    )
    if plan.backend == "exchange":
        return jax.vmap(
            lambda kernel, r, c, replaced: prepare_exchange(kernel, r, c, replaced, plan.k)
        )(kernels, *pivots)
    gathers = None
    if plan.entry is not None and plan.leave is not None:
        gathers = (
            plan.entry.reshape(kernels.shape[0], -1),
            plan.leave.reshape(kernels.shape[0], -1),
        )
        if _checks.is_concrete(kernels, pivots, gathers):  # nothing to compile
            kernels, pivots, gathers = jax.tree.map(np.asarray, (kernels, pivots, gathers))
    return prepare_thinning(kernels, pivots, gathers, plan.k)


def _apply(table: Any, columns: jax.Array, plan: Plan, L: int) -> jax.Array:
    """E[W(h') | h] of one kernel for W = columns [C, N]: [N, C]."""
    if plan.backend == "dense":
        return jnp.matmul(table, columns.T, precision="highest")
    if plan.backend == "lumped":
        return apply_lumped(table, columns, plan.by_rows)
    apply = apply_thinning if plan.backend == "thinning" else apply_exchange
    return apply(table, columns, plan.k, L)


def _each(plan: Plan, function: Callable, *arguments: Any) -> jax.Array:
    """Apply to the kernels in turn, or to all at once."""
    return (
        jax.vmap(function)(*arguments)
        if plan.backend in ("dense", "lumped")
        else _map(function, *arguments)
    )


def expectation(
    operator: Operator, values: jax.Array, plan: Plan, num_local_states: int
) -> jax.Array:
    """E[V(s_g', h') | s_g, h, a] for V = values [G, N], as [G, N, A].

    Given (s_g, a), s_g' and h' are independent, so either the A mixtures of V or its G columns pass
    through the kernel, the fewer.
    """
    transition = operator.global_transition
    G, A, _ = transition.shape
    N = values.shape[1]
    kernels = jax.tree.leaves(operator.tables)[0].shape[0]

    def move(table, columns):
        return _apply(table, columns, plan, num_local_states)

    if kernels > G:  # a kernel for each (s_g, a)
        mixtures = jnp.einsum("gac,cn->gan", transition, values, precision="highest").reshape(
            G * A, 1, N
        )
        return _each(plan, move, operator.tables, mixtures).reshape(G, A, N).transpose(0, 2, 1)
    if A < G:
        return _each(
            plan,
            lambda table, mixing: move(table, jnp.matmul(mixing, values, precision="highest")),
            operator.tables,
            transition,
        )
    moved = _each(plan, lambda table: move(table, values), operator.tables)
    return jnp.einsum("gac,gnc->gna", transition, moved, precision="highest")


