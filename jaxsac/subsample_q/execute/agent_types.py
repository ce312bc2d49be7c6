def simulate_types(
    key: jax.Array,
    model: TypedModel,
    table: TypedTable,
    ks: Sequence[int],
    num_agents: Any,
    horizon: int,
    initial: tuple[Any, Any],
) -> Run:
    """Execute the policy of ks[e] sampled agents of each type on num_agents[e] of them, in counts:
    as `simulate`, with counts [H, E, L].

    `initial` is (global state, counts int32 [E, L] whose rows sum to num_agents). The reward weighs
    types by model.shares, not by num_agents: keep them equal. The key is consumed. ValueError for
    k_e > num_agents[e] and counts that do not sum to num_agents.
    """
    sizes = tuple(_checks.static_integer("ks", k, 1) for k in ks)
    counts = _checks.integer_array("initial counts", initial[1], (model.num_types, model.num_local_states))
    _checks.require(
        table.value.shape[1] == math.prod(num_histograms(k, model.num_local_states) for k in sizes),
        f"the table was not solved for {ks=}.",
    )
    if _checks.is_concrete(num_agents, initial[1]):
        given = np.asarray(initial[1]).sum(axis=1)
        _checks.require(
            bool(np.all(given == np.asarray(num_agents))),
            f"initial counts sum to {given}, not to num_agents={num_agents}.",
        )
        _checks.require(
            bool(np.all(given >= np.asarray(sizes))),
            f"ks={list(sizes)} samples more agents of a type than num_agents={num_agents}.",
        )
    start = _checks.integer_array("initial global state", jnp.asarray(initial[0], jnp.int32), ())
    return _simulate(
        key, model, table.policy, start, counts, _checks.static_integer("horizon", horizon, 1), sizes
    )


@functools.partial(jax.jit, static_argnames=("horizon", "ks"))
def _simulate(key, model, policy, global_state, counts, horizon, ks):
    E, L = counts.shape

    def position(sampled):
        index = jnp.int32(0)
        for e, k in enumerate(ks):
            index = index * num_histograms(k, L) + graded_rank(sampled[e][: L - 1], k)
        return index

    def step(carried, key):
        global_state, counts, factor, total = carried
        global_key, *keys = jax.random.split(key, 1 + 2 * E)
        action = policy[
            global_state, position([draw_counts(keys[e], counts[e], k) for e, k in enumerate(ks)])
        ]
        means = counts.astype(factor.dtype) / jnp.sum(
            counts, axis=1, keepdims=True, dtype=jnp.int32
        ).astype(factor.dtype)
        local = jnp.sum(means * model.local_reward[:, global_state], axis=1)
        reward = model.global_reward[global_state, action] + jnp.vdot(
            model.shares, local, precision="highest"
        )
        after = move_global(global_key, model.global_transition[global_state, action])
        moved = [
            jnp.sum(
                split(keys[E + e], counts[e], model.local_transition[e, global_state]),
                axis=0,
                dtype=jnp.int32,
            )
            for e in range(E)
        ]
        return (after, jnp.stack(moved), factor * model.discount, total + factor * reward), (
            reward,
            global_state,
            counts,
            action,
        )

    zero = jnp.zeros((), model.shares.dtype)
    carried, record = lax.scan(
        step, (global_state, counts, zero + 1, zero), jax.random.split(key, horizon)
    )
    return Run(*record, carried[-1])
