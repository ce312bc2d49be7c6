def upper_bound_types(table: TypedTable, ks: Sequence[int], initial: tuple[Any, Any]) -> jax.Array:
    """U = sum over stratified samples of their chance times V*(s_g, h) ≥ V_n*(s_g, counts), counts
    int32 [E, L]: as `upper_bound`, [].
    """
    counts = jnp.asarray(initial[1], jnp.int32)
    weights = [hypergeometric_weights(counts[e], k, table.value.dtype) for e, k in enumerate(ks)]
    joint = functools.reduce(
        lambda left, right: (left[:, None] * right[None, :]).reshape(-1), weights
    )
    return jnp.vdot(
        joint, table.bounds.upper[jnp.asarray(initial[0], jnp.int32)], precision="highest"
    )


