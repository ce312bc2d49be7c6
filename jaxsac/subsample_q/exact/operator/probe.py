def product_test(model: Model, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Functions of which the expectation is known in closed form, to measure the error of an
    operator at full size.

    W(h) = prod_j x_j^{h_j} has E[W(h') | h] = prod_i ((P x)_i)^{h_i}. Returns W [G, N] (one x for
    each column, signs and sizes mixed, |x_j|^k ≥ 0.1), weights [A] and the exact sum_a weights_a
    E[W | s_g, h, a], [G, N].
    """
    G, A, L = model.num_global_states, model.num_actions, model.num_local_states
    points, weights = probe_points(G, A, L, k, model.dtype)
    kernels = (
        model.local_transition if model.action_drives_agents else model.local_transition[:, None]
    )
    moved = monomials(
        jnp.einsum("gaij,cj->gaci", kernels, points, precision="highest"), k
    )  # [G, A or 1, G', N]
    mixed = model.global_transition * jnp.asarray(weights)[None, :, None]
    if not model.action_drives_agents:
        mixed = mixed.sum(axis=1, keepdims=True)
    exact = jnp.einsum("gac,gacn->gn", mixed, moved, precision="highest")
    return jnp.asarray(monomials(points, k)), jnp.asarray(weights), exact


def probe_points(
    G: int, A: int, L: int, k: int, dtype: Any, seed: int = 2403
) -> tuple[np.ndarray, np.ndarray]:
    """x [G, L] and weights [A] of `product_test`."""
    generator = np.random.default_rng(seed)
    points = np.where(generator.random((G, L)) < 0.5, -1.0, 1.0) * (
        0.1 + 0.9 * generator.random((G, L))
    ) ** (1.0 / k)
    return points.astype(dtype), (generator.choice([-1.0, 1.0], A) / A).astype(dtype)


def monomials(x: Any, k: int) -> Any:
    """prod_j x_j^{h_j} of x [..., L] for all histograms h of k agents: [..., N]; numpy for numpy,
    which leaves nothing to compile.
    """
    xp = jnp if isinstance(x, jax.Array) else np
    counts = enumerate_counts(k, x.shape[-1])
    powers = xp.concatenate(
        [xp.ones((*x.shape, 1), x.dtype), xp.cumprod(xp.repeat(x[..., None], k, axis=-1), axis=-1)],
        axis=-1,
    )
    result = powers[..., 0, counts[:, 0]]
    for j in range(1, x.shape[-1]):
        result = result * powers[..., j, counts[:, j]]
    return result
