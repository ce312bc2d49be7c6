"""The main job from the shell: a log in, a report, a plot, numbers and a router out; new text
routed; bad input told what to do.
"""

import json
import random
import re

import numpy as np
import pytest

import jaxsac
from jaxsac.__main__ import main
from jaxsac.route import results
from jaxsac.route.features import transform
from jaxsac.route.router import choose, load_router

TOPICS = {
    "chart": ["draw"],
    "table": ["load", "join"],
    "mail": ["send"],
    "sum": ["add"],
    "photo": ["resize"],
}
FILLERS = ["please", "now", "the", "weekly", "team", "data", "new", "for"]


def make_log(folder, records=160, numeric=False):
    rng = random.Random(0)
    lines = []
    for _ in range(records):
        topics = rng.sample(sorted(TOPICS), rng.choice([1, 1, 2]))
        words = topics + rng.sample(FILLERS, 3)
        rng.shuffle(words)
        tools = [tool for topic in topics for tool in TOPICS[topic] if rng.random() < 0.9] or [
            "log"
        ]
        tools += ["log"] if rng.random() < 0.3 else []
        context = [float(topic in topics) for topic in TOPICS] if numeric else " ".join(words)
        lines.append(
            json.dumps(
                {
                    "context": context,
                    "tools": tools,
                    "utility": 1,
                    **({"group": str(len(lines))} if numeric else {}),
                }
            )
        )
    lines.append(
        json.dumps(
            {
                "context": [0] * 5 if numeric else "everything",
                "tools": [f"t{number}" for number in range(9)],
            }
        )
    )
    path = folder / "calls.jsonl"
    path.write_text("\n".join(lines) + "\n")
    descriptions = {
        "draw": {"description": "Draw a chart.", "cost": 120, "family": "plots"},
        "load": {"description": "Load a table."},
    }
    descriptions["resize"] = {"family": "plots"}
    (folder / "tools.json").write_text(json.dumps(descriptions))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("route")
    path = make_log(folder)
    arguments = ["route", str(path), "--out", str(folder / "out"), "--no-curve", "--quiet"]
    assert main([*arguments, "--family-share", "0.5"]) == 0
    return folder


@pytest.fixture(scope="module")
def numeric(tmp_path_factory):
    """A run on contexts that are numbers, over the folder of an earlier one."""
    folder = tmp_path_factory.mktemp("numeric")
    path, out = make_log(folder, numeric=True), folder / "out"
    out.mkdir()
    (out / "report.json").write_text("an earlier run")
    (out / "stale.txt").write_text("")
    arguments = ["route", str(path), "--out", str(out), "--no-curve", "--quiet"]
    assert main([*arguments, "--lam", "0.05", "--budget", "3"]) == 0
    return folder


def numbers(finished):
    return json.loads((finished / "out" / results.NUMBERS).read_text())


def test_the_results_folder(finished):
    names = {path.name for path in (finished / "out").iterdir()}
    assert names == {"report.txt", "report.json", "route.png", "router.npz"}
    assert sorted(path.name for path in finished.iterdir()) == [
        "calls.jsonl",
        "out",
        "tools.json",
    ]  # no scratch folder is left
    assert (finished / "out" / "route.png").read_bytes().startswith(b"\x89PNG")


def test_the_numbers(finished):
    found = numbers(finished)
    sets = [
        json.loads(line)["tools"] for line in (finished / "calls.jsonl").read_text().splitlines()
    ]
    dropped = sum(len(tools) > found["log"]["budget"] for tools in sets)
    assert (
        dropped >= 1
        and found["log"]["records"] == 161
        and found["log"]["longer_records_dropped"] == dropped
    )
    assert (
        found["certificate"]["status"] == "CONVERGED"
        and found["certificate"]["relative_gap"] <= 1e-2
    )
    methods = found["result"]["methods"]
    retrieval = {"retrieval", "retrieval + popularity"}
    assert set(methods) == {"router", "dense", "popularity", *retrieval}
    # The words of a context decide its tools: whoever reads it is far ahead of popularity.
    for name in ("router", "dense"):
        assert (
            methods[name]["ndcg"]["mean"]
            > methods["popularity"]["ndcg"]["mean"] + 5 * methods["popularity"]["ndcg"]["error"]
        )
        assert (
            methods[name]["log_likelihood"]["mean"]
            > methods["popularity"]["log_likelihood"]["mean"]
        )
    kept = {row["tool"]: row for row in found["kept"]}
    assert {"draw", "load", "join", "send", "add", "resize"} <= set(kept)
    assert (
        kept["draw"]["cost"] == 120
        and kept["draw"]["family"] == "plots"
        and kept["draw"]["strength"] > 0.5
    )


def test_the_text_names_what_matters(finished):
    text = (finished / "out" / "report.txt").read_text()
    for part in (
        "longer records dropped",
        "the log taught more than the texts say",
        "duality gap",
        "recall@",
        "nDCG@",
        "log-likelihood",
        "router - dense",
        "seconds",
        "plots; 0.5 of the penalty is on families",
        "calibration error",
        '"none of them"',
        "never came among",
        "log-likelihood of a validation record: -",
    ):
        assert part in text


def test_new_text_is_routed(finished, capsys):
    assert main(["route", "--policy", str(finished / "out"), "a chart now", "photo for mail"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a chart now" and lines[1].split()[0] == "draw" and lines[1].endswith("%")
    assert main(["route", "--policy", str(finished / "out"), "--json", "photo for mail"]) == 0
    found = json.loads(capsys.readouterr().out)
    tools = [row["tool"] for row in found["tools"]]
    assert "resize" in tools[:2] and "send" in tools
    assert all(0 <= row["probability"] <= 1 for row in found["tools"])


def test_the_deployed_router(finished, capsys):
    """It learnt from the log, says why, and knows a tool that no record used."""
    router, found = jaxsac.Router.load(finished / "out"), numbers(finished)["router"]
    assert router("a chart now", top=1)[0].tool == "draw"
    best = router.explain("a chart now", top=1)[0]
    assert best.records and np.isclose(
        best.score, sum(best.channels.values()) + best.learnt + best.constant
    )
    assert found["tools"] == len(router.names)
    recall = [found[f"recall@{k}"]["mean"] for k in (1, 3, 10)]
    assert 0.5 < recall[0] <= recall[1] <= recall[2] <= 1
    assert found["probabilities"]["calibration_error"] < 0.15
    assert found["none"]["answered"] > 0.5 and not found["too_small"]
    command = ["route", "--policy", str(finished / "out"), "--json", "a chart now"]
    assert main([*command, "--top", "2", "--always", "resize"]) == 0
    tools = json.loads(capsys.readouterr().out)["tools"]
    assert {row["tool"] for row in tools} == {"draw", "resize"}
    assert main([*command, "--top", "9", "--at-least", "0.5"]) == 0
    tools = json.loads(capsys.readouterr().out)["tools"]
    assert tools and all(row["probability"] >= 0.5 for row in tools)
    assert main([*command, "--always", "none"]) == 2
    assert "no tool is named none" in capsys.readouterr().err


def test_texts_from_the_input(finished, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", iter(["sum this\n", "\n", "a table\n"]))
    assert main(["route", "--policy", str(finished / "out"), "--json", "-"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["context"] for row in found] == ["sum this", "a table"] and found[0]["tools"][0][
        "tool"
    ] == "add"


@pytest.mark.slow
def test_the_saved_router_scores_as_the_policy_says(numeric):
    router, context = load_router(numeric / "out"), np.array([[1.0, 0, 0, 0, 0]])
    choices = choose(router, context)[0]
    scores = np.asarray(router.policy.scores(transform(router.features, context)[0]))
    assert [choice.score for choice in choices] == sorted(scores, reverse=True)[: len(choices)]
    assert all(
        np.isclose(scores[router.names.index(choice.tool)], choice.score) for choice in choices
    )
    marginals = np.asarray(jaxsac.gibbs.marginals(scores, budget=router.policy.budget))
    assert np.isclose(choices[0].probability, marginals.max())


def test_a_run_replaces_an_earlier_one_and_nothing_else(numeric, tmp_path, capsys):
    out = numeric / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {"report.txt", "report.json", "route.png", "policy.npz", "features.npz"}
    assert numbers(numeric)["certificate"]["lam"] == 0.05
    # Numeric contexts route numbers.
    assert main(["route", "--policy", str(out), "[1, 0, 0, 0, 0]"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "draw"
    assert main(["route", "--policy", str(out), "chart"]) == 2
    assert "lists of numbers" in capsys.readouterr().err
    assert main(["route", "--policy", str(out), "[1, 0]"]) == 2
    assert "lists of 5 numbers" in capsys.readouterr().err
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    assert main(["route", str(numeric / "calls.jsonl"), "--out", str(mine)]) == 2
    assert "holds something else" in capsys.readouterr().err and (mine / "thesis.tex").exists()


def test_mixed_up_router_files(numeric, tmp_path, capsys):
    for name in ("policy.npz", "features.npz"):
        (tmp_path / name).write_bytes((numeric / "out" / name).read_bytes())
    data = bytearray((tmp_path / "features.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "features.npz").write_bytes(data)
    assert main(["route", "--policy", str(tmp_path), "[1, 0, 0, 0, 0]"]) == 2
    assert "features.npz: damaged" in capsys.readouterr().err
    (tmp_path / "features.npz").unlink()
    assert main(["route", "--policy", str(tmp_path / "policy.npz"), "[1, 0, 0, 0, 0]"]) == 2
    assert "needs features.npz beside it" in capsys.readouterr().err
    assert main(["route", "--policy", str(tmp_path / "none"), "x"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl", "b.jsonl"], "one log at a time"),
        (["none.jsonl"], "cannot be read"),
        (["--tools", "t.json"], "give the log too"),
        (["--json"], "--json goes with --policy"),
        (["--policy", "x"], "--policy needs texts"),
        (["calls.jsonl", "--out", "no/such/folder"], "does not exist: create it"),
        (["calls.jsonl", "--budget", "1", "--tools", "none.json"], "none.json: cannot be read"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_log(tmp_path, records=3)
    assert main(["route", "--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "route-results").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--lam", "-1", "must be"),
        ("--lam", "nan", "must be"),
        ("--lam", "best", 'must be "validation"'),
        ("--budget", "0", ">= 1"),
        ("--keep", "x", ">= 1"),
    ],
)
def test_bad_options_say_what_to_do(option, value, message, capsys):
    with pytest.raises(SystemExit):
        main(["route", option, value])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no records"),
        (['{"context": "a b", "tools": []}'] * 9, "no record uses a tool"),
        (['{"context": "a b", "tools": ["x"]}'] * 9, "too few for training"),
        (['{"context": "a b", "tools": ["x"], "shown": ["x"]}'] * 9, "shown only the tools that"),
        (['{"context": "a b", "tools": ["x"]}', '{"context": "a"}'], 'line 2: "tools" is missing'),
    ],
)
def test_bad_logs_say_what_is_wrong(lines, message, tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines))
    assert main(["route", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_learning_curve_is_the_same_in_a_process_of_its_own(tmp_path):
    from jaxsac.route import job
    from jaxsac.route.log_file import read_log

    log = read_log(make_log(tmp_path, numeric=True))
    alone, beside = (
        job.run(log, job.Options(curve=(40,), lam=0.05, processes=number)).summary["learning_curve"]
        for number in (1, 2)
    )
    assert [point["records"] for point in alone] == [40, len(split_of(log).training.sets)]
    for one, two in zip(alone, beside, strict=True):
        for method, values in one["methods"].items():
            np.testing.assert_allclose(
                values["log_likelihood"]["mean"],
                two["methods"][method]["log_likelihood"]["mean"],
                rtol=1e-3,
            )


def split_of(log):
    from jaxsac.route import split

    return split.split(split.within_budget(log, split.default_budget(log)))


def test_a_run_that_fails_while_writing_leaves_the_earlier_one(numeric, monkeypatch, tmp_path):
    from jaxsac.route import job

    out = tmp_path / "out"
    out.mkdir()
    (out / results.NUMBERS).write_text("{}")
    result = job.Result(numbers(numeric), load_router(numeric / "out"))
    monkeypatch.setattr(results, "save_router", lambda folder, router: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results.write(out, result)
    assert (out / results.NUMBERS).read_text() == "{}" and [
        path.name for path in tmp_path.iterdir()
    ] == ["out"]


@pytest.mark.slow
def test_utilities_change_the_router(tmp_path, capsys):
    """Half of the records fail: what they did is imitated less."""
    path = make_log(tmp_path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for number, record in enumerate(records):
        record["utility"] = number % 2
        if not number % 2:
            record["tools"] = ["broken"]
    path.write_text("\n".join(map(json.dumps, records)))
    assert main(["route", str(path), "--out", str(tmp_path / "a"), "--no-curve", "--quiet"]) == 0
    assert "higher utility count more" in capsys.readouterr().out
    even = [json.dumps(record | {"utility": 1}) for record in records]
    path.write_text("\n".join(even))
    assert main(["route", str(path), "--out", str(tmp_path / "b"), "--no-curve", "--quiet"]) == 0
    capsys.readouterr()
    shown = [jaxsac.Router.load(tmp_path / folder)("a chart now", top=8) for folder in ("a", "b")]
    broken = [
        next(each.probability for each in choices if each.tool == "broken") for choices in shown
    ]
    assert broken[0] < 0.5 * broken[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: {"context": "do it now", "group": str(n)}, "teach nothing|too few different"),
        (lambda n: {"context": "🙂" * (1 + n % 7), "group": str(n)}, "no training text"),
        (lambda n: {"context": [1.0, 2.0], "group": str(n)}, "teach nothing"),
        (lambda n: {"tools": ["log"]}, "teach nothing"),
    ],
)
def test_logs_that_teach_nothing_are_told_so(tmp_path, capsys, change, message):
    path = make_log(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps(one | change(n)) for n, one in enumerate(lines)))
    assert main(["route", str(path), "--out", str(tmp_path / "o"), "--no-curve", "--quiet"]) == 2
    assert re.search(message, capsys.readouterr().err)
