"""Programs that test_trials.py runs in processes of their own: `python worker.py NAME
ARGUMENTS...`.
"""

import functools
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import run_trials


def noisy_walk(key):
    """A trial with a loop whose length depends on its key, a product, an integer and a flag."""
    steps = jax.random.randint(key, (), 1, 20)
    matrix = jax.random.uniform(key, (4, 4), jnp.float32)
    total = jax.lax.fori_loop(
        0, steps, lambda i, carry: carry @ matrix / (1 + carry), jnp.ones(4, jnp.float32)
    )
    return {"total": total, "steps": steps, "odd": steps % 2 == 1}


def save(path, results):
    np.savez(path, **{name: np.asarray(value) for name, value in results.items()})


def mesh(folder):
    """On several devices: any trial count, chunks, a mesh of two axes; and what the compiled
    program does.
    """
    devices = jax.make_mesh((2, 2), ("a", "b"))
    for num_trials, batch_size in ((3, None), (22, 9)):
        save(
            f"{folder}/{num_trials}.npz",
            run_trials(
                noisy_walk, jax.random.key(0), num_trials, batch_size=batch_size, mesh=devices
            ),
        )
    inside = jax.jit(lambda key: run_trials(noisy_walk, key, 22, batch_size=8, mesh=devices))(
        jax.random.key(0)
    )
    save(f"{folder}/inside.npz", inside)

    from jaxsac.trials.run import _program

    program = _program(noisy_walk, 32, devices, "threefry2x32")
    text = program.lower(np.zeros(2, np.uint32), np.int32(0)).compile().as_text()
    naive = jax.jit(
        jax.vmap(noisy_walk), in_shardings=jax.NamedSharding(devices, jax.P(("a", "b")))
    )
    with open(f"{folder}/program.txt", "w") as file:
        file.write(text)
    with open(f"{folder}/naive.txt", "w") as file:
        file.write(naive.lower(jax.random.split(jax.random.key(0), 32)).compile().as_text())


def stop_in(folder, chunk):
    """Kill this process while it writes the given chunk, the bytes already in the temporary
    file.
    """
    from jaxsac import _files

    replace = os.replace

    def replace_or_die(source, target):
        if str(target).endswith(f"chunk-{int(chunk):06d}.npz"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    _files.os.replace = replace_or_die
    run_trials(noisy_walk, jax.random.key(0), 22, batch_size=4, checkpoint=folder)


def slow(folder):
    """Chunks that take a while, to be killed from outside."""

    def trial(key):
        results = noisy_walk(key)
        jax.debug.callback(lambda _: time.sleep(0.01), results["steps"])
        return results

    results = run_trials(trial, jax.random.key(0), 40, batch_size=4, checkpoint=folder)
    save(f"{folder}/results.npz", results)


def process(port, rank, folder):
    """One of two processes that share the trials."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(rank))
    devices = jax.make_mesh((jax.device_count(),), ("trials",))
    assert jax.device_count() == 4 and jax.local_device_count() == 2
    save(f"{folder}/whole-{rank}.npz", run_trials(noisy_walk, jax.random.key(0), 22, mesh=devices))
    if rank == "1":
        time.sleep(2)  # processes need not come at the same time
    checkpoint = f"{folder}/checkpoint"
    in_chunks = functools.partial(
        run_trials, noisy_walk, num_trials=22, batch_size=8, mesh=devices, checkpoint=checkpoint
    )
    save(f"{folder}/chunks-{rank}.npz", in_chunks(jax.random.key(0)))
    if rank == "0":
        os.remove(f"{checkpoint}/chunk-000001.npz")
    save(f"{folder}/resumed-{rank}.npz", in_chunks(jax.random.key(0)))
    try:
        in_chunks(jax.random.key(1))
    except ValueError:
        print("refused")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    {"mesh": mesh, "stop_in": stop_in, "slow": slow, "process": process}[sys.argv[1]](*sys.argv[2:])
