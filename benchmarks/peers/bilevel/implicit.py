"""Implicit differentiation by another library on the real-data bilevel problems: an inner solve and
a pull-back, then a step of Adam.
"""

import time

import numpy as np
from bilevel import functions


def answer_with(inner_solver, arrays, settings):
    """What `answer` returns for inner_solver(lower) = (x, y) -> the minimiser from y, with
    derivatives in x, at the library's own settings for it.
    """
    import jax
    import optax

    jax.config.update("jax_enable_x64", settings["dtype"] == "float64")
    problem = settings["problem"]
    bed = functions.functions(arrays, problem)
    solve = inner_solver(lambda y, x: bed.lower(y, x, 0, bed.num_train))

    def objective(x, y):
        y = solve(x, y)
        return bed.upper(y, x, 0, bed.num_valid), jax.lax.stop_gradient(y)

    outputs = {}
    for number, rate in enumerate(settings["rates"]):
        outer = optax.adam(rate)

        @jax.jit
        def step(x, y, state, outer=outer):
            (_, y), h = jax.value_and_grad(objective, has_aux=True)(x, y)
            update, state = outer.update(h, state, x)
            return functions.project(x + update, problem), y, state

        x, y, state = bed.x, bed.y, outer.init(bed.x)
        jax.block_until_ready(step(x, y, state))
        spent, seconds, xs = 0.0, [], []
        while spent < settings["budget"] and len(xs) < 1000:
            start = time.perf_counter()
            x, y, state = jax.block_until_ready(step(x, y, state))
            spent += time.perf_counter() - start
            seconds.append(spent)
            xs.append(np.asarray(x))
        steps = np.arange(1, len(xs) + 1)
        outputs |= {
            f"seconds_{number}": np.asarray(seconds),
            f"steps_{number}": steps,
            f"xs_{number}": np.stack(xs),
        }
    return outputs, {}
