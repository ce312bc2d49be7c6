"""Trials: trial i is fn(fold_in(key, i)) however it is run, stopped and resumed; summaries against
numpy.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trials.worker import noisy_walk

from jaxsac import FileError, Solution, Status, _files, run_trials, summarise

KEY = jax.random.key(0)
HERE = pathlib.Path(__file__).parent


def reference(num_trials, fn=noisy_walk, key=KEY):
    one = jax.jit(fn)
    return jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *[one(jax.random.fold_in(key, i)) for i in range(num_trials)],
    )


@pytest.fixture(scope="module")
def expected():
    return {name: np.asarray(value) for name, value in reference(40).items()}


def close(results, expected, num_trials):
    assert set(results) == set(expected)
    for name, value in results.items():
        value = np.asarray(value)
        assert (
            value.shape == (num_trials, *expected[name].shape[1:])
            and value.dtype == expected[name].dtype
        )
        np.testing.assert_allclose(value, expected[name][:num_trials], rtol=1e-5, atol=1e-6)


def bitwise(left, right):
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        np.asarray(a).dtype == np.asarray(b).dtype
        and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def start(*arguments, devices=1):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(HERE.parent.parent),
        # as here: what was compiled otherwise may round otherwise
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(
            int(jax.config.read("jax_disable_most_optimizations"))
        ),
        "PYTHONHASHSEED": str(
            len(arguments)
        ),  # another one in each process: no result may depend on it
    }
    command = [sys.executable, "-W", "error", str(HERE / "worker.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, status=0, timeout=300):
    out, error = process.communicate(timeout=timeout)
    assert process.returncode == status, out + error
    return out


@pytest.mark.parametrize("num_trials, batch_size", [(40, None), (22, 8), (3, 100)])
def test_trial_i_has_key_i_whatever_the_chunks(expected, num_trials, batch_size):
    close(run_trials(noisy_walk, KEY, num_trials, batch_size=batch_size), expected, num_trials)


def test_inside_jit_vmap_and_grad(expected):
    close(jax.jit(lambda key: run_trials(noisy_walk, key, 22, batch_size=8))(KEY), expected, 22)
    close(jax.jit(lambda: run_trials(noisy_walk, KEY, 22, batch_size=8))(), expected, 22)
    keys = jax.random.split(KEY, 2)
    several = jax.vmap(lambda key: run_trials(jax.random.uniform, key, 6, batch_size=3))(keys)
    np.testing.assert_array_equal(several, [run_trials(jax.random.uniform, key, 6) for key in keys])

    def loss(theta):
        return run_trials(
            lambda key: jnp.sum(theta**2 * jax.random.uniform(key, (3,))), KEY, 6, batch_size=3
        ).sum()

    theta = jnp.array([1.0, 2.0, -1.0])
    noise = run_trials(lambda key: jax.random.uniform(key, (3,)), KEY, 6)
    np.testing.assert_allclose(jax.grad(loss)(theta), 2 * theta * noise.sum(0), rtol=1e-12)


def test_any_pytree_comes_back(tmp_path):
    def trial(key):
        x = jax.random.normal(key, (), jnp.float32)
        stats = {
            "key": key,
            "none": None,
            "empty": (),
            "half": x.astype(jnp.bfloat16),
            "wide": x.astype(jnp.complex64),
        }
        return Solution(
            value=x, status=jnp.int32(Status.STALLED), stats=stats, state=jnp.zeros((0, 2))
        )

    whole = run_trials(trial, KEY, 6)
    assert (
        isinstance(whole, Solution)
        and whole.status.dtype == jnp.int32
        and whole.state.shape == (6, 0, 2)
    )
    for _ in range(2):  # computed, then read from the files
        chunked = run_trials(trial, KEY, 6, batch_size=2, checkpoint=tmp_path)
        assert (
            chunked.stats["key"].dtype == KEY.dtype and chunked.stats["half"].dtype == jnp.bfloat16
        )
        numbers = [
            jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == KEY.dtype else x, tree)
            for tree in (whole, chunked)
        ]
        assert bitwise(*numbers)
    old_style = jax.random.PRNGKey(0)
    np.testing.assert_array_equal(
        run_trials(jax.random.uniform, old_style, 5, batch_size=2),
        reference(5, jax.random.uniform, old_style),
    )


def test_one_trace_however_many_chunks_and_calls(tmp_path):
    traces = []

    def trial(key):
        traces.append(key)
        return jax.random.uniform(key)

    run_trials(trial, KEY, 50, batch_size=5)
    assert len(traces) == 1
    run_trials(trial, jax.random.key(1), 100, batch_size=5, checkpoint=tmp_path / "a")
    run_trials(trial, jax.random.key(1), 100, batch_size=5, checkpoint=tmp_path / "a")
    assert len(traces) == 1
    jax.jit(lambda key: run_trials(trial, key, 50, batch_size=5))(KEY)
    assert len(traces) == 2

    class Trial(types.SimpleNamespace):  # has no hash
        def __call__(self, key):
            return trial(key)

    run_trials(Trial(), KEY, 50, batch_size=5)
    assert len(traces) == 3


def test_several_devices(expected, tmp_path):
    finish(start("mesh", tmp_path, devices=4))
    for name, num_trials in {"3": 3, "22": 22, "inside": 22}.items():
        close(dict(np.load(tmp_path / f"{name}.npz")), expected, num_trials)
    collective = re.compile(
        r"all-reduce|all-gather|all-to-all|collective|reduce-scatter|infeed|send|recv"
    )
    program, naive = (tmp_path / "program.txt").read_text(), (tmp_path / "naive.txt").read_text()
    assert "while" in program and "num_partitions=4" in program and not collective.search(program)
    assert collective.search(
        naive
    )  # what is looked for exists where the loop is not mapped by hand


@pytest.mark.slow
def test_two_processes(expected, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    both = [start("process", port, rank, tmp_path, devices=2) for rank in (0, 1)]
    for process in both:
        assert "refused" in finish(process)
    for name in ("whole-0", "whole-1", "chunks-0", "chunks-1"):
        close(dict(np.load(tmp_path / f"{name}.npz")), expected, 22)
    for rank in (0, 1):
        assert bitwise(
            *[dict(np.load(tmp_path / f"{name}-{rank}.npz")) for name in ("chunks", "resumed")]
        )


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_write_costs_one_chunk(tmp_path):
    whole = run_trials(noisy_walk, KEY, 22, batch_size=4)
    finish(start("stop_in", tmp_path, 3), status=-signal.SIGKILL)
    names = sorted(os.listdir(tmp_path))
    assert names[1:] == [f"chunk-{number:06d}.npz" for number in range(3)] and names[0].endswith(
        ".tmp"
    )
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names[1:]}
    resumed = run_trials(noisy_walk, KEY, 22, batch_size=4, checkpoint=tmp_path)
    assert bitwise(resumed, whole)
    assert sorted(os.listdir(tmp_path)) == [f"chunk-{number:06d}.npz" for number in range(6)]
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in before}


@pytest.mark.slow
def test_kills_at_any_moment(tmp_path):
    undisturbed = tmp_path / "undisturbed"
    finish(start("slow", undisturbed))
    rng = np.random.default_rng(0)
    disturbed, kills = tmp_path / "disturbed", 0
    for _ in range(40):
        process = start("slow", disturbed)
        had = len(list(disturbed.glob("chunk*")))
        while process.poll() is None and len(list(disturbed.glob("chunk*"))) == had:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.08))
        if process.poll() is None:
            process.kill()
            process.communicate()
            kills += 1
        else:
            finish(process)
            break
    assert kills >= 3
    assert bitwise(*[dict(np.load(folder / "results.npz")) for folder in (undisturbed, disturbed)])


def test_a_checkpoint_serves_its_own_call_only(tmp_path):
    def trial(key, scale=2):
        return np.float32(scale) * jax.random.normal(key, (2,), jnp.float32)

    def run(fn=trial, key=KEY, num_trials=6, batch_size=2):
        return run_trials(fn, key, num_trials, batch_size=batch_size, checkpoint=tmp_path)

    whole = run()
    more = run(num_trials=8)  # what is there is reused
    assert bitwise(more[:6], whole) and len(os.listdir(tmp_path)) == 4
    assert bitwise(run(num_trials=2), whole[:2])
    for message, change in {
        "another key": {"key": jax.random.key(1)},
        "another chunk size": {"batch_size": 3},
        "another function, other data": {"fn": lambda key: trial(key, 3)},
    }.items():
        with pytest.raises(FileError, match=message + ".*pass a new folder"):
            run(**change)
    path = tmp_path / "chunk-000001.npz"
    data = path.read_bytes()
    for mutant in (data[:-1], data[:100], b"", data[:300] + bytes([data[300] ^ 1]) + data[301:]):
        path.write_bytes(mutant)
        with pytest.raises(FileError, match=r"chunk-000001\.npz: damaged"):
            run()
    path.write_bytes((tmp_path / "chunk-000002.npz").read_bytes())
    with pytest.raises(FileError, match="another name"):
        run()
    arrays, metadata = _files.from_bytes(data, "chunk of trials")
    path.write_bytes(_files.to_bytes("chunk of trials", {"0": arrays["0"][:1]}, metadata))
    with pytest.raises(FileError, match=r"expected kind 'f' and shape \[2, 2\]"):
        run()
    path.unlink()
    assert bitwise(run(), whole)


def test_progress_ticks_and_says_what_it_needs(monkeypatch, capsys, expected):
    close(run_trials(noisy_walk, KEY, 22, batch_size=8, progress=True), expected, 22)
    assert "22/22" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        run_trials(noisy_walk, KEY, 22, batch_size=8, progress=True)


def test_mistakes_are_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    mistakes = [
        ("num_trials must be ≥ 1", {"num_trials": 0}),
        ("batch_size must be ≥ 1", {"batch_size": 0}),
        ("pass batch_size as well", {"progress": True}),
        ("pass batch_size as well", {"checkpoint": tmp_path}),
        ("checkpoint must name a folder", {"checkpoint": file, "batch_size": 1}),
        ("key must be one key", {"key": 0}),
        ("key must be one key", {"key": jnp.zeros(2)}),
        ("key must be one key", {"key": jax.random.split(KEY, 3)}),
    ]
    for message, change in mistakes:
        with pytest.raises(ValueError, match=message):
            run_trials(**({"fn": noisy_walk, "key": KEY, "num_trials": 4} | change))
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(lambda key: run_trials(noisy_walk, key, 4, batch_size=2, progress=True))(KEY)
    with pytest.raises(ValueError, match="outside jit"):
        jax.grad(
            lambda x: run_trials(
                lambda key: x * 1.0, KEY, 4, batch_size=2, checkpoint=tmp_path / "new"
            ).sum()
        )(1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_summaries_agree_with_numpy(dtype):
    rng = np.random.default_rng(0)
    values = (3 + rng.standard_normal((50, 4))).astype(dtype)
    flags = rng.random(50) < 0.3
    dirty = values.copy()
    dirty[3, 0], dirty[7, 0], dirty[7, 1], dirty[:, 2] = np.nan, np.inf, -np.inf, np.nan
    dirty[1:, 3] = np.nan
    summary = summarise({"values": values, "flags": flags, "dirty": dirty}, quantiles=(0.1, 0.5))
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    exact = values.astype(np.float64)
    np.testing.assert_allclose(summary.mean["values"], exact.mean(0), rtol=rtol)
    np.testing.assert_allclose(
        summary.standard_error["values"], exact.std(0, ddof=1) / np.sqrt(50), rtol=rtol
    )
    np.testing.assert_allclose(
        summary.quantiles["values"], np.quantile(exact, (0.1, 0.5), axis=0), rtol=rtol
    )
    assert summary.mean["values"].dtype == dtype and summary.quantiles["values"].dtype == dtype
    np.testing.assert_allclose(summary.mean["flags"], flags.mean(), rtol=1e-12)
    kept = exact[np.isfinite(dirty[:, 0]), 0]
    np.testing.assert_allclose(summary.mean["dirty"][0], kept.mean(), rtol=rtol)
    np.testing.assert_allclose(
        summary.standard_error["dirty"][0], kept.std(ddof=1) / np.sqrt(48), rtol=rtol
    )
    np.testing.assert_allclose(
        summary.quantiles["dirty"][:, 0], np.quantile(kept, (0.1, 0.5)), rtol=rtol
    )
    np.testing.assert_array_equal(summary.num_nonfinite["dirty"], [2, 1, 50, 49])
    assert summary.num_nonfinite["dirty"].dtype == jnp.int32
    assert np.isnan(summary.mean["dirty"][2]) and np.isnan(summary.quantiles["dirty"][:, 2]).all()
    assert summary.mean["dirty"][3] == dirty[0, 3] and np.isnan(summary.standard_error["dirty"][3])
    lower, upper = summary.band(0.95)
    width = 2 * 1.959963984540054 * exact.std(0, ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(
        upper["values"] - lower["values"], width, rtol=1e-9 if dtype == np.float64 else 1e-4
    )


def test_summaries_keep_their_scale_and_their_tree():
    values = np.random.default_rng(0).standard_normal(40).astype(np.float32)
    base = summarise(values)
    for scale in (np.float32(2.0**100), np.float32(2.0**-90)):
        scaled = summarise(values * scale)
        np.testing.assert_allclose(scaled.mean / scale, base.mean, rtol=1e-5)
        np.testing.assert_allclose(scaled.standard_error / scale, base.standard_error, rtol=1e-5)
    huge = np.full(10, 3e38, np.float32)
    np.testing.assert_allclose(summarise(huge).mean, 3e38, rtol=1e-5)
    assert summarise(huge).standard_error < 1e33
    assert isinstance(summarise(Solution(values, np.zeros(40, np.int32), {}, ())).mean, Solution)
    inside = jax.jit(summarise)(values)
    np.testing.assert_allclose(inside.quantiles, base.quantiles, rtol=1e-6)
    np.testing.assert_array_equal(np.sort(base.quantiles), base.quantiles)


def test_the_band_covers_the_mean_as_often_as_it_says():
    def covered(key):
        lower, upper = summarise(jax.random.exponential(key, (100,))).band(0.9)
        return (lower <= 1.0) & (upper >= 1.0)

    rate = summarise(run_trials(covered, KEY, 2000))
    # A skewed variable's normal band with 100 draws covers about 1 % less than it says.
    assert abs(rate.mean - 0.9) < 0.015 + 4 * rate.standard_error


def test_summaries_name_mistakes():
    for message, results, options in [
        ("leading trial axis", 1.0, {}),
        ("one common number of trials", (np.zeros(3), np.zeros(4)), {}),
        ("one common number of trials", np.zeros((0, 2)), {}),
        ("quantiles must be", np.zeros(3), {"quantiles": (0.5, 1.5)}),
        ("real numbers, got a leaf of complex64", np.zeros(3, np.complex64), {}),
        ("real numbers, got a leaf of key", jax.random.split(KEY, 3), {}),
    ]:
        with pytest.raises(ValueError, match=message):
            summarise(results, **options)
