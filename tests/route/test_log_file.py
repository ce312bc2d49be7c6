"""Logs on disk: what is read, and what a bad line is told."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxsac.route import split
from jaxsac.route.log_file import LogError, Tool, log_hash, read_log, write_log

GOOD = (
    '{"context": "draw a chart", "tools": ["plot", "plot", "axes"], "utility": 0.5,'
    ' "group": "monday", "else": 1}'
)


def written(tmp_path, *lines, name="log.jsonl"):
    path = tmp_path / name
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    )
    return path


def test_texts_sets_utilities_and_groups(tmp_path):
    log = read_log(
        written(
            tmp_path,
            b"\xef\xbb\xbf" + GOOD.encode(),
            "",
            '{"context": "Read  IT", "tools": []}',
            "   ",
        )
    )
    assert log.contexts == ["draw a chart", "Read  IT"]
    assert log.sets == [("axes", "plot"), ()]  # a tool named twice counts once
    np.testing.assert_array_equal(log.utilities, [0.5, 1.0])
    assert log.groups == ["monday", "read it"]  # equal texts stay together without a group
    assert log.tools == {}


def test_numbers(tmp_path):
    log = read_log(
        written(
            tmp_path,
            '{"context": [1, 2.5], "tools": ["a"]}',
            '{"context": [0, -1], "tools": ["b"], "utility": -3}',
        )
    )
    np.testing.assert_array_equal(log.contexts, [[1, 2.5], [0, -1]])
    assert log.take([1]).sets == [("b",)] and log.take([1]).contexts.shape == (1, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON at column 2"),
        (b'{"context": "\xff", "tools": []}', "line 2: not UTF-8 at byte 14"),
        ("[1]", "line 2: must be an object with context and tools, got a list"),
        ('{"tools": []}', 'line 2: "context" is missing'),
        ('{"context": "x"}', 'line 2: "tools" is missing'),
        (
            '{"context": 3, "tools": []}',
            '"context" must be a non-empty text or a list of numbers, got a number',
        ),
        ('{"context": "  ", "tools": []}', '"context" must be a non-empty text'),
        (
            '{"context": [1], "tools": []}',
            '"context" must be a text as in the records before it, got a list of 1 numbers',
        ),
        ('{"context": [], "tools": []}', "non-empty list of finite numbers"),
        ('{"context": [1, NaN], "tools": []}', "finite numbers"),
        ('{"context": [1, true], "tools": []}', "finite numbers"),
        ('{"context": [1e999], "tools": []}', "finite numbers"),
        ('{"context": "x", "tools": "plot"}', '"tools" must be a list of names'),
        ('{"context": "x", "tools": ["a", 3]}', '"tools" must be a list of names'),
        ('{"context": "x", "tools": [""]}', '"tools" must be a list of names'),
        (
            '{"context": "x", "tools": [], "utility": "good"}',
            "\"utility\" must be a finite number, got 'good'",
        ),
        ('{"context": "x", "tools": [], "utility": Infinity}', '"utility" must be a finite number'),
        (
            '{"context": "x", "tools": [], "utility": 1' + "0" * 400 + "}",
            '"utility" must be a finite number',
        ),
        ('{"context": "x", "tools": [], "group": 3}', '"group" must be a text, got a number'),
        ("[" * 100_000, "line 2"),
        ('{"context": "x", "tools": [], "utilty": 0}', '"utilty" is no field: did you mean'),
        ('{"contxt": "x", "tools": []}', '"contxt" is no field: did you mean "context"?'),
        ('{"context": "x", "tools": [], "groups": "a"}', 'did you mean "group"?'),
        ('{"context": "x", "tools": [], "tools": ["a"]}', '"tools" is there twice'),
        ('{"context": "x\\ud800", "tools": []}', "lone surrogate"),
        ('{"context": "x", "tools": ["\\ud800"]}', "lone surrogate"),
        ('{"context": "x", "tools": ["\\uDBff"]}', "lone surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(LogError) as caught:
        read_log(written(tmp_path, GOOD, line, GOOD))
    assert message in str(caught.value) and "log.jsonl, line 2" in str(caught.value)


def test_fields_beside_the_ones_they_resemble_are_ignored(tmp_path):
    extra = '"content": 1, "tool": "x", "groups": [2], "group": "g", "utilities": 3, "utility": 1'
    line = f'{{"context": "\\ud83d\\ude00", "tools": ["a"], {extra}}}'
    log = read_log(written(tmp_path, line))
    assert log.groups == ["g"] and log.contexts == ["😀"] and log.sets == [("a",)]


def test_all_bad_lines_are_named_up_to_five(tmp_path):
    with pytest.raises(LogError) as caught:
        read_log(written(tmp_path, GOOD, *["{"] * 9))
    assert [f"line {number}:" in str(caught.value) for number in range(1, 9)] == [False] + [
        True
    ] * 5 + [False] * 2


def test_numbers_of_another_length(tmp_path):
    with pytest.raises(
        LogError,
        match=r"line 2.*must be a list of 2 numbers as in the records before it,"
        r" got a list of 3 numbers",
    ):
        read_log(
            written(
                tmp_path, '{"context": [1, 2], "tools": []}', '{"context": [1, 2, 3], "tools": []}'
            )
        )


def test_empty_and_absent_files(tmp_path):
    with pytest.raises(LogError, match="no records"):
        read_log(written(tmp_path, "", " "))
    with pytest.raises(LogError, match=r"absent\.jsonl: cannot be read \(No such file"):
        read_log(tmp_path / "absent.jsonl")


def test_a_packed_log_is_read_as_the_plain_one(tmp_path):
    plain = written(tmp_path, '{"context": "a b", "tools": ["x"]}', '{"context": "c", "tools": []}')
    packed = tmp_path / "log.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_log(packed)[:2] == read_log(plain)[:2]
    for damaged in (packed.read_bytes()[:-12], b"not packed", packed.read_bytes()[:20] + b"xxxxxx"):
        packed.write_bytes(damaged)
        with pytest.raises(LogError, match=r"log\.jsonl\.gz: cannot be read \(.+\)"):
            read_log(packed)


def test_tools_beside_the_log(tmp_path):
    path = written(tmp_path, GOOD)
    written(
        tmp_path,
        '{"plot": {"description": "Draw.", "cost": 3, "family": "charts"}, "axes": {}}',
        name="tools.json",
    )
    assert read_log(path).tools == {"plot": Tool("Draw.", 3.0, "charts"), "axes": Tool()}
    other = written(tmp_path, '{"plot": {"cost": 1}}', name="other.json")
    assert read_log(path, other).tools == {"plot": Tool(cost=1.0)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3", "must be an object"),
        ("[3]", "item 1 of the list must be an object with a"),
        ('[{"name": "a"}, {"name": "a"}]', "is there twice"),
        ('{"tools": [{"name": ""}]}', "must be a non-empty text"),
        ("{\n,", "not JSON at line 2, column 1"),
        (b"\xff", "not UTF-8"),
        ('{"a": 3}', 'tool "a": must be an object with description, cost or family, got a number'),
        ('{"a": {"description": 3}}', 'tool "a": "description" must be a text, got a number'),
        ('{"a": {"cost": -1}}', 'tool "a": "cost" must be a finite number >= 0, got -1'),
        ('{"a": {"cost": "x"}}', '"cost" must be a finite number'),
        ('{"a": {"family": null}}', '"family" must be a text, got null'),
        ('{"a": {"cost": 1}, "a": {"cost": 2}}', '"a" is there twice'),
        ('{"\\ud800": {}}', "lone surrogate"),
    ],
)
def test_bad_tools_are_named(tmp_path, content, message):
    path = written(tmp_path, GOOD)
    written(tmp_path, content, name="tools.json")
    with pytest.raises(LogError) as caught:
        read_log(path)
    assert "tools.json" in str(caught.value) and message in str(caught.value)


def test_an_asked_for_tools_file_must_be_there(tmp_path):
    with pytest.raises(LogError, match=r"none\.json: cannot be read"):
        read_log(written(tmp_path, GOOD), tmp_path / "none.json")


@pytest.mark.parametrize("numeric", [False, True])
def test_a_written_log_reads_back_equal(tmp_path, numeric):
    context = "[0.1, 2]" if numeric else '"größe"'
    path = written(
        tmp_path,
        f'{{"context": {context}, "tools": ["b", "a"], "utility": 0.25}}',
        name="first.jsonl",
    )
    written(tmp_path, '{"a": {"description": "Ä", "cost": 0.5}, "unused": {}}', name="tools.json")
    log = read_log(path)
    (tmp_path / "copy").mkdir()
    write_log(tmp_path / "copy", log)
    again = read_log(tmp_path / "copy" / "log.jsonl")
    assert (
        log_hash(again) == log_hash(log) and again.tools == log.tools and again.groups == log.groups
    )


def test_the_hash_sees_every_field(tmp_path):
    lines = [
        GOOD,
        GOOD.replace("0.5", "0.6"),
        GOOD.replace("monday", "friday"),
        GOOD.replace("axes", "axis"),
        GOOD.replace("draw", "Draw"),
    ]
    assert len({log_hash(read_log(written(tmp_path, line))) for line in lines}) == 5


TEXT = st.text(st.characters(), max_size=5)  # halves of characters too
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXT,
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from(["context", "tools", "utility", "group"]), children)
    ),
    max_leaves=8,
)
RECORD = st.fixed_dictionaries(
    {"context": TEXT | JSON, "tools": st.lists(TEXT, max_size=3) | JSON},
    optional={"utility": st.floats() | JSON, "group": TEXT | JSON, "utilty": JSON, "note": JSON},
)
LINES = st.lists((JSON | RECORD).map(json.dumps) | st.text(max_size=20), max_size=4)


def check_any(folder, lines):
    path = folder / "log.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    try:
        log = read_log(path)
    except LogError:
        return
    assert len(log.sets) == len(log.contexts) == len(log.groups) == len(log.utilities) > 0
    assert np.isfinite(log.utilities).all() and log_hash(log)
    # what is read is what the lines say, in order
    said = [json.loads(line) for line in "\n".join(lines).split("\n") if line.strip()]
    assert log.sets == [tuple(sorted(set(one["tools"]))) for one in said]
    assert log.utilities.tolist() == [one.get("utility", 1.0) for one in said]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(lines=LINES)
def test_any_file_is_a_log_or_our_error(tmp_path_factory, lines):
    check_any(tmp_path_factory.mktemp("fuzz"), lines)


@pytest.mark.slow
@settings(max_examples=100_000, deadline=None, derandomize=True, database=None)
@given(lines=LINES)
def test_any_of_many_files_is_a_log_or_our_error(tmp_path_factory, lines):
    check_any(tmp_path_factory.getbasetemp(), lines)


def test_what_was_shown_and_with_what_chance(tmp_path):
    lines = [
        {"context": "a", "tools": ["x"], "shown": ["y", "x", "x"], "propensity": 0.25},
        {"context": "b", "tools": [], "shown": []},
        {"context": "c", "tools": ["z"], "shown": None},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = read_log(path)
    assert log.shown == [("x", "y"), (), None] and log.names() == {"x", "y", "z"}
    np.testing.assert_array_equal(log.propensities, [0.25, np.nan, np.nan])
    table = split.shown_table(log, ["w", "x", "y"])
    np.testing.assert_array_equal(table, [[0, 1, 1], [0, 0, 0], [1, 1, 1]])
    part = log.take([2, 0])
    assert part.shown == [None, ("x", "y")] and part.propensities[1] == 0.25
    write_log(tmp_path, log)
    again = read_log(tmp_path / "log.jsonl")
    assert again.shown == log.shown and log_hash(again) == log_hash(log)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shown": ["y"]}, '"shown" must hold the tools that were used: x is not there'),
        ({"shown": "x"}, '"shown" must be a list of names'),
        ({"propensity": 0}, r'"propensity" must be a number in \(0, 1\], got 0'),
        ({"utility": 1e308}, '"utility" must be at most 1e\\+100 in size'),
        ({"propensity": True}, '"propensity" must be a number'),
        ({"propensities": 0.5}, '"propensities" is no field: did you mean "propensity"'),
    ],
)
def test_what_was_shown_must_make_sense(tmp_path, fields, message):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"context": "a", "tools": ["x"]} | fields) + "\n")
    with pytest.raises(LogError, match=f"line 1: {message}"):
        read_log(path)
