"""jaxopt's implicit differentiation on the real-data bilevel problems: LBFGS inside, Adam outside, several outer rates."""

import time

import exchange
import numpy as np


def answer(arrays, settings):
    import jax
    import jax.numpy as jnp
    import jaxopt
    import optax

    jax.config.update("jax_enable_x64", settings["dtype"] == "float64")
    train, valid = jnp.asarray(arrays["train"]), jnp.asarray(arrays["valid"])
    train_targets, valid_targets = jnp.asarray(arrays["train_targets"]), jnp.asarray(arrays["valid_targets"])

    def logistic(y, features, signs):
        return jnp.mean(jax.nn.softplus(-signs * (features @ y)))

    def entropy(y, features, classes):
        scores = features @ y
        return jax.nn.logsumexp(scores, axis=1) - jnp.take_along_axis(scores, classes[:, None], axis=1)[:, 0]

    if settings["problem"] == "weights":
        x0, y0 = jnp.zeros(train.shape[1], train.dtype), jnp.zeros(train.shape[1], train.dtype)

        def lower(y, x):
            return logistic(y, train, train_targets) + 0.5 * jnp.sum(jnp.exp(x) * y**2)

        def upper(y):
            return logistic(y, valid, valid_targets)

        def project(x):
            return jnp.clip(x, -10.0, 1.0)
    else:
        x0, y0 = jnp.zeros(train.shape[0], train.dtype), jnp.zeros((train.shape[1], 10), train.dtype)

        def lower(y, x):
            return jnp.mean(jax.nn.sigmoid(x) * entropy(y, train, train_targets)) + 1e-3 * jnp.sum(y**2)

        def upper(y):
            return jnp.mean(entropy(y, valid, valid_targets))

        def project(x):
            return x

    inner = jaxopt.LBFGS(lower, maxiter=50, tol=1e-4, implicit_diff=True)

    def objective(x, y):
        y = inner.run(y, x).params
        return upper(y), jax.lax.stop_gradient(y)

    outputs = {}
    for rate in settings["rates"]:
        outer = optax.adam(rate)

        @jax.jit
        def step(x, y, state, outer=outer):
            (_, y), h = jax.value_and_grad(objective, has_aux=True)(x, y)
            update, state = outer.update(h, state, x)
            return project(x + update), y, state

        x, y, state = x0, y0, outer.init(x0)
        jax.block_until_ready(step(x, y, state))
        spent, seconds, steps, xs = 0.0, [], [], []
        while spent < settings["budget"] and len(xs) < 1000:
            start = time.perf_counter()
            x, y, state = jax.block_until_ready(step(x, y, state))
            spent += time.perf_counter() - start
            seconds.append(spent)
            steps.append(len(steps) + 1)
            xs.append(np.asarray(x))
        outputs |= {f"seconds_{rate}": np.asarray(seconds), f"steps_{rate}": np.asarray(steps), f"xs_{rate}": np.stack(xs)}
    return outputs, {}


if __name__ == "__main__":
    exchange.serve(answer)
