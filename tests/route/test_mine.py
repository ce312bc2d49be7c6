"""The mined log: deterministic, cached, parallel, free of private names, own packages and
imports.
"""

import collections

import pytest

from jaxsac.route import mine
from jaxsac.route.log_file import LogError, log_hash, read_log
from jaxsac.route.sources import Function, Module

PACKAGES = ("equinox", "numpy", "tqdm")


@pytest.fixture(scope="module")
def log():
    return mine.mine(PACKAGES)


def test_a_real_log_of_useful_size(log):
    assert len(log.sets) > 200 and len(log.tools) > 100
    assert all(log.sets) and {name for tools in log.sets for name in tools} == set(log.tools)
    assert (
        log.notes["source"] == "mined"
        and set(log.notes["packages"]) == set(PACKAGES)
        and log.notes["hash"] == log_hash(log)
    )


def test_tools_are_public_library_names_of_other_packages(log):
    for group, tools in zip(log.groups, log.sets, strict=True):
        own = group.split(".")[0]
        for tool in tools:
            assert not any(part.startswith("_") for part in tool.split(".")), tool
            assert not f"{tool}.".startswith(f"{own}."), (group, tool)


def test_most_tools_have_a_description(log):
    assert sum(bool(tool.description) for tool in log.tools.values()) > 0.8 * len(log.tools)


@pytest.mark.slow
def test_it_is_deterministic_and_parallel_parsing_changes_nothing(log, capsys):
    again = mine.mine(PACKAGES[::-1], processes=2, progress=True)
    assert log_hash(again) == log_hash(log) and again.tools == log.tools
    files = log.notes["files"]
    shown = capsys.readouterr().err
    assert "parsing sources: 100%" in shown and f"{files}/{files}" in shown


def test_the_cache_gives_the_same_log_and_heals(log, tmp_path):
    assert log_hash(mine.mine(("tqdm",), cache=tmp_path)) == log_hash(
        mine.mine(("tqdm",), cache=tmp_path)
    )
    (folder,) = tmp_path.iterdir()
    (folder / "log.jsonl").write_text('{"context": "mine", "tools": ["x"]}\n')
    assert mine.mine(("tqdm",), cache=tmp_path).contexts == ["mine"]  # it does come from the cache
    (folder / "log.jsonl").write_text("damaged")
    healed = mine.mine(("tqdm",), cache=tmp_path)
    assert log_hash(healed) == log_hash(read_log(folder / "log.jsonl")) and len(healed.sets) > 10
    assert [path.name for path in tmp_path.iterdir()] == [
        folder.name
    ]  # nothing half-written is left


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert mine.mine(("tqdm",), cache=blocked).sets


def test_unknown_packages():
    with pytest.raises(LogError, match="cannot mine 'torch': choose from equinox, jax"):
        mine.mine(("torch",))


def test_an_absent_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(mine.PACKAGES, "no_such_package", "no-such-package")
    with pytest.raises(LogError, match=r"no-such-package is not installed.*jaxsac\[route\]"):
        mine.mine(("no_such_package",))


def test_no_tests_vendored_copies_or_private_installations_among_the_sources():
    for package in PACKAGES:
        for source in mine.find_sources(package):
            assert not {"test", "tests", "testing", "_vendor", "site-packages"} & set(
                source.module.split(".")[:-1]
            )
            assert not source.module.rsplit(".", 1)[-1].startswith("test_")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXSAC_CACHE", str(tmp_path))
    assert mine.cache_folder() == tmp_path


def made(name, functions=(), docstrings=None, exports=None, stars=()):
    return Module(name, tuple(functions), docstrings or {}, exports or {}, stars)


def collect(*modules):
    return mine._collect({module.name: module for module in modules})


def call(name, *calls, text="Do it."):
    return Function(name, ("x",), text, calls)


def test_one_definition_is_one_tool_under_its_most_used_name():
    log = collect(
        made("lib", docstrings={}, exports={"solve": "lib._impl.solve"}),
        made("lib._impl", docstrings={"solve": "Solve it."}),
        made("lib.linalg", stars=("lib._impl",)),
        made(
            "user.a",
            [call("f", "lib.solve"), call("g", "lib.solve"), call("h", "lib.linalg.solve")],
        ),
    )
    assert collections.Counter(log.sets) == {("lib.solve",): 3}
    assert log.tools["lib.solve"].description == "Solve it."


def test_private_own_and_unknown_names_are_no_tools():
    log = collect(
        made("lib", docstrings={"f": "F.", "_g": "G."}),
        made("user", docstrings={"own": "Own."}, exports={"alias": "user.sub.a.inner"}),
        made("user.sub"),
        made(
            "user.sub.a",
            [
                call(
                    "one",
                    "lib.f",
                    "lib._g",
                    "user.sub.b.thing",
                    "user.x.y",
                    "unknown.f",
                    "lib",
                    "json.dumps",
                )
            ],
            {"inner": "I."},
        ),
        made("user.sub.b", [call("none", "user.sub.a.inner", "user.alias")]),
    )
    assert log.sets == [("json.dumps", "lib.f")]


def test_twins_count_once_and_contexts_hold_no_imports():
    log = collect(
        made("lib", docstrings={"f": "F."}),
        made("a.m", [call("go", "lib.f")], exports={"secret": "lib.f"}),
        made("b.m", [call("go", "lib.f")]),
        made("c.m", [call("go", "lib.f", text="Another.")]),
    )
    assert log.contexts == ["a.m (x): Do it.", "c.m (x): Another."] and log.groups == ["a.m", "c.m"]


def test_circular_reexports_end():
    log = collect(
        made("a", exports={"f": "b.f"}, stars=("b",)),
        made("b", exports={"f": "a.f"}, stars=("a",)),
        made("u", [call("g", "a.f", "a.h")]),
    )
    assert log.sets == [("a.f", "a.h")]
