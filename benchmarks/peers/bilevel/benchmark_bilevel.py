"""The solvers of benchopt's benchmark_bilevel, as they ship, on the real-data bilevel problems.

The benchmark is no package: the interpreter needs benchopt, and a checkout of benchmark_bilevel on
its path (a .pth file).
"""

import importlib
import time

import numpy as np
from bilevel import functions


def answer(arrays, settings):
    import jax

    jax.config.update("jax_enable_x64", settings["dtype"] == "float64")
    solver = importlib.import_module(f"solvers.{settings['solver']}").Solver
    bed = functions.functions(arrays, settings["problem"])

    def on_slices(function):
        # their arguments: the inner variable, the outer one, where the batch starts, and its size
        return lambda inner_var, outer_var, start=0, batch_size=1: function(
            inner_var, outer_var, start, batch_size
        )

    outputs = {}
    for number, (step_size, outer_ratio) in enumerate(settings["grid"]):
        run = solver.get_instance(
            step_size=step_size, outer_ratio=outer_ratio, eval_freq=settings["every"]
        )
        run.set_objective(
            on_slices(bed.lower), on_slices(bed.upper), bed.num_train, bed.num_valid, bed.y, bed.x
        )
        outputs |= {f"{name}_{number}": values for name, values in timed(run, settings).items()}
    return outputs, {}


def timed(run, settings):
    """Seconds, steps and x after each stretch of a solver that has been compiled."""
    import jax

    seconds, xs, clock = [0.0], [], [0.0]

    def goes_on():
        """Called before every stretch; the clock stands still in here."""
        if clock[0]:
            jax.block_until_ready((run.inner_var, run.outer_var))
            seconds.append(seconds[-1] + time.perf_counter() - clock[0])
            xs.append(np.asarray(functions.project(run.outer_var, settings["problem"])))
        clock[0] = time.perf_counter()
        return seconds[-1] < settings["budget"] and len(xs) < 400

    run.run(goes_on)
    return {
        "seconds": np.asarray(seconds[1:]),
        "steps": settings["every"] * np.arange(1, len(xs) + 1),
        "xs": np.stack(xs),
    }
