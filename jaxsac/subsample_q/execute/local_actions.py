def simulate_local_actions(
    key: jax.Array,
    model: LocalActionModel,
    table: AssignmentTable,
    num_agents: Any,
    horizon: int,
    initial: tuple[Any, Any],
) -> Run:
    """Execute the policy of k agents on num_agents, in counts; every agent samples for itself, and
    the cost does not grow with num_agents.

    The global action is the policy's for one fresh sample of k agents. An agent in state s samples
    k - 1 of the others, and takes action b with the chance assignment[s, b] / h_s of the histogram
    h of the sample and itself: given the counts, agents choose independently, and the chances are
    summed exactly over all samples. Returns a `Run` whose actions are the global ones. The key is
    consumed. Bad input: as in `simulate`, and a ValueError for a model with `allowed` (agents who
    choose alone cannot keep to it). Source: arXiv 2412.00661, algorithm 2.
    """
    _checks.require(
        model.allowed is None,
        "allowed restricts joint assignments, which agents who choose independently do not keep.",
    )
    start, counts = checked_start(model.base, table, num_agents, initial)
    k = agents_of(table.value.shape[1], model.num_local_states)
    return _simulate(
        key,
        model,
        table.policy,
        table.assignment,
        start,
        counts,
        _checks.static_integer("horizon", horizon, 1),
        k,
    )


@functools.partial(jax.jit, static_argnames=("horizon", "k"))
def _simulate(key, model, policy, assignment, global_state, counts, horizon, k):
    base, L, B = model.base, model.num_local_states, model.num_local_actions
    kernels = model.pair_kernels()
    others = jnp.asarray(enumerate_counts(k - 1, L))
    with_me = np.stack([additions(k, L, s) for s in range(L)])

    def chances(global_state, counts, state):
        """P(action | an agent in `state`), [B]; any where nobody is."""
        without = jnp.maximum(
            counts - (jnp.arange(L, dtype=jnp.int32) == state).astype(jnp.int32), 0
        )
        weights = hypergeometric_weights(without, k - 1, base.dtype)
        share = (
            assignment[global_state, with_me[state], state].astype(base.dtype)
            / (others[:, state] + 1).astype(base.dtype)[:, None]
        )
        return jnp.matmul(weights, share, precision="highest")

    def step(carried, key):
        global_state, counts, factor, total = carried
        sample_key, choice_key, global_key, local_key = jax.random.split(key, 4)
        action = policy[global_state, graded_rank(draw_counts(sample_key, counts, k)[: L - 1], k)]
        taken = split(
            choice_key, counts, jnp.stack([chances(global_state, counts, s) for s in range(L)])
        )  # [L, B]
        shares = taken.astype(base.dtype) / jnp.sum(counts, dtype=jnp.int32).astype(base.dtype)
        reward = base.global_reward[global_state, action] + jnp.vdot(
            shares, base.local_reward[global_state].T, precision="highest"
        )
        if model.share_reward is not None:
            reward = reward + model.share_reward(global_state, shares)
        after = move_global(global_key, base.global_transition[global_state, action])
        moved = jnp.sum(
            split(local_key, taken.reshape(L * B), kernels[global_state]), axis=0, dtype=jnp.int32
        )
        return (after, moved, factor * base.discount, total + factor * reward), (
            reward,
            global_state,
            counts,
            action,
        )

    zero = jnp.zeros((), base.dtype)
    carried, record = lax.scan(
        step, (global_state, counts, zero + 1, zero), jax.random.split(key, horizon)
    )
    return Run(*record, carried[-1])
