"""jaxdp on the same problem, given the dense kernel: value iteration in one compiled loop, stopped
by the sup norm as quantecon's is.
"""

import time

import numpy as np


def answer(arrays, settings):
    import chex
    import jax
    import jax.numpy as jnp
    import jaxdp

    chex.disable_asserts()  # of values, which its updates make in every sweep
    jax.config.update("jax_enable_x64", True)
    discount, reward = float(settings["discount"]), arrays["reward"]
    transition = np.ascontiguousarray(arrays["transition"].transpose(1, 2, 0))  # [A, S', S]
    count = len(reward)
    mdp = jaxdp.MDP(
        transition=jnp.asarray(transition),
        reward=jnp.broadcast_to(jnp.asarray(reward.T)[:, :, None], transition.shape),
        initial=jnp.full(count, 1 / count),
        terminal=jnp.zeros(count),
    )
    method = jaxdp.ValueIteration(gamma=discount)
    goal = settings["epsilon"] * (1 - discount) / (2 * discount)

    @jax.jit
    def solve(mdp):
        def going(pair):
            return jnp.max(jnp.abs(pair[1].v_val - pair[0].v_val)) > goal

        def sweep(pair):
            return pair[1], method.update(mdp, pair[1])

        start = method.init(mdp)
        return jax.lax.while_loop(going, sweep, (start, method.update(mdp, start)))[1].v_val

    jax.block_until_ready(solve(mdp))
    times = []
    for _ in range(settings["repeats"]):
        start = time.perf_counter()
        value = jax.block_until_ready(solve(mdp))
        times.append(time.perf_counter() - start)
    return {"value_iteration": np.asarray(value)}, {"value_iteration": min(times)}
