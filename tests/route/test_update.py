"""A router learned again from a log that has grown, the page of its diagnosis, and tools chosen
within a cost.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsac import control
from jaxsac.__main__ import main
from jaxsac.route import results
from jaxsac.route.features import NumberFeatures
from jaxsac.route.router import Router, choose, load_router, save_router


def make_log(folder, kind):
    """Five topics, each with a tool of its own beside one that is used at random."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(160):
        topics = random.choice(5, random.integers(1, 3), replace=False)
        tools = [f"tool {topic}" for topic in topics if random.uniform() < 0.9] + ["log"] * int(
            random.uniform() < 0.3
        )
        context = np.isin(np.arange(5), topics).astype(float).tolist()
        if kind == "texts":
            context = " ".join(["do", *(f"topic{topic}" for topic in topics)])
        lines.append(
            json.dumps({"context": context, "tools": tools or ["log"], "group": str(number)})
        )
    path = folder / "calls.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module", params=["numbers", "texts"])
def updated(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("update")
    path = make_log(folder, request.param)
    assert main(["route", str(path), "--out", str(folder / "first"), "--no-curve", "--quiet"]) == 0
    lines = path.read_text().splitlines()[:20]
    fresh = [json.loads(line) | {"group": f"new {number}"} for number, line in enumerate(lines)]
    path.write_text(path.read_text() + "".join(json.dumps(line) + "\n" for line in fresh))
    arguments = [
        "route",
        str(path),
        "--update",
        str(folder / "first"),
        "--out",
        str(folder / "second"),
        "--report",
        "--quiet",
    ]
    assert main(arguments) == 0
    return folder


@pytest.mark.slow
def test_an_update_fits_at_the_penalty_of_the_earlier_run(updated):
    first, second = (
        json.loads((updated / name / results.NUMBERS).read_text()) for name in ("first", "second")
    )
    assert second["log"]["records"] == first["log"]["records"] + 20
    ratio = first["split"]["training"] / second["split"]["training"]
    assert second["certificate"]["lam"] == pytest.approx(first["certificate"]["lam"] * ratio**0.5)
    assert second["certificate"]["status"] == "CONVERGED"
    page = (updated / "second" / results.DIAGNOSIS).read_text()
    assert "witness margin" in page and "data:image/png;base64," in page and "stability" in page


def test_tools_within_a_cost(tmp_path):
    policy = control.SparsePolicy(
        positions=jnp.arange(4, dtype=jnp.int32),
        coef=jnp.asarray(np.random.default_rng(0).normal(size=(4, 5))),
        intercept=jnp.zeros(4),
        background=jnp.zeros(0, jnp.int32),
        tools=jnp.asarray([2, 3, 5, 7], jnp.int32),
        budget=2,
    )
    costs = [1.0, 2.0, 3.0, 4.0]
    save_router(
        tmp_path, Router(list("abcd"), NumberFeatures(np.zeros(5), np.ones(5)), policy, costs)
    )
    router = load_router(tmp_path)
    assert router.costs == costs
    context = np.eye(5)[:2]
    for limit in (0.5, 3.0, 100.0):
        for choices in choose(router, context, limit):
            assert sum(costs[router.names.index(choice.tool)] for choice in choices) <= limit
    assert choose(router, context, 0.5) == [[], []]
    assert {choice.tool for choice in choose(router, context, 1e6)[0]} == set(router.names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--update", "nowhere"], "learns from a log"),
        (["x.jsonl", "--update", "y", "--keep", "3"], "keeps the penalty of the earlier run"),
        (["x.jsonl", "--update", "y", "--lam", "validation"], "keeps the penalty of the earlier"),
        (["x.jsonl", "--cost-limit", "3"], "--cost-limit goes with --policy"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert main(["route", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "earlier", "message"),
    [
        ("texts", {"lam": 0.1}, "earlier run are numbers, those of this log texts"),
        ("numbers", {"lam": 0.1, "router": {}}, "earlier run are texts, those of this log numbers"),
        ("numbers", {"lam": 0.0}, "not the numbers of an earlier run"),
    ],
)
def test_an_update_from_another_kind_of_run(kind, earlier, message, tmp_path, capsys):
    numbers = {"certificate": {"lam": earlier.pop("lam")}, "split": {"training": 9}} | earlier
    (tmp_path / results.NUMBERS).write_text(json.dumps(numbers))
    path = make_log(tmp_path, kind)
    assert main(["route", str(path), "--update", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
