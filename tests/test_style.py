"""The style sheet of CONTRIBUTING.md, as far as a test can keep it beside ruff."""

import ast
import inspect
import itertools
import re

import pytest
from public_names import PUBLIC, namespace
from test_architecture import FILES, PACKAGE

LINES = 400
PARAMETERS = 10
MANY_PARAMETERS = {"solve", "path", "lam_max", "fit", "simulate", "certify", "argmin", "__init__"}
WIDTH = 100

# What says a problem: a question takes the record instead. The constructors of the records and
# these four functions take the words as well.
PROBLEM = {"X", "y", "groups", "loss", "weights", "sample_weight", "offset", "intercept", "penalty"}
TASK = {
    "num_actions", "budget", "objective", "intercept", "smoothing", "weighting", "advantage_scale",
    "clip", "families", "family_share",
}  # fmt: skip
SAID_ONCE = {"Problem", "Task", "solve", "path", "lam_max", "fit"}
MOST_RESTATED = 14

by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


@by_file
def test_files_are_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


@by_file
def test_functions_have_few_parameters(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name not in MANY_PARAMETERS:
            given = node.args
            names = [a.arg for a in given.posonlyargs + given.args + given.kwonlyargs]
            names = [name for name in names if name not in ("self", "cls")]
            assert len(names) <= PARAMETERS, f"{path.name}:{node.lineno} {node.name}"


def ragged(text: str) -> list[str]:
    """Lines of prose that end though the next line's first word would have fitted. Blocks that are
    indented, formulas and code, may end where they like.
    """
    lines, found = text.split("\n"), []
    depths = [len(line) - len(line.lstrip()) for line in lines]
    base = min(
        (depth for line, depth in zip(lines[1:], depths[1:], strict=True) if line.strip()),
        default=0,
    )
    depths[0], lines[0] = base, " " * base + '"""' + lines[0]
    for number, (line, following) in enumerate(itertools.pairwise(lines)):
        words, (depth, next_depth) = following.split(), depths[number : number + 2]
        bullet = re.match(r"\s*(\* |- |\d+\. )", line)
        if not line.strip() or not words or re.match(r"(\*|-|\d+\.|\|)$", words[0]):
            continue
        if depth > base + 2 or next_depth != depth + (len(bullet.group(1)) if bullet else 0):
            continue
        if line.rstrip()[-1] not in ":;" and len(line) + 1 + len(words[0]) <= WIDTH - 12:
            found.append(line)
    return found


@by_file
def test_docstrings_are_not_ragged(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            text = ast.get_docstring(node, clean=False)
            assert not text or not ragged(text), ragged(text)


def test_a_ragged_docstring_would_be_seen():
    assert ragged("One sentence\nthat goes on") and not ragged("* one\n* two")
    assert not ragged("A line that is as long as it can be " + "x" * 60 + "\nand goes on")


def public_functions(room: str):
    for name in sorted(PUBLIC[room]):
        value = getattr(namespace(room), name)
        if inspect.isfunction(value):
            yield name, list(inspect.signature(value).parameters)


def test_a_problem_is_said_once():
    restated = []
    for room in PUBLIC:
        words = {"group_lasso": PROBLEM, "control": TASK}.get(room.split(".")[0])
        if words:
            for name, parameters in public_functions(room):
                if name not in SAID_ONCE:
                    restated += [f"{room}.{name}({p})" for p in parameters if p in words]
    assert len(restated) <= MOST_RESTATED, restated


@pytest.mark.parametrize("room", PUBLIC)
def test_every_field_of_a_public_record_is_described(room):
    for name in sorted(PUBLIC[room]):
        value = getattr(namespace(room), name)
        fields = getattr(value, "__annotations__", {}) if inspect.isclass(value) else {}
        if not fields or (
            not issubclass(value, tuple) and not hasattr(value, "__dataclass_fields__")
        ):
            continue
        source = inspect.getsource(value)
        for field in fields:
            said = re.search(rf"`{field}`|^\s*{field}: [^#\n]*#|\* {field}\b", source, re.M)
            assert said, f"{room}.{name}.{field}: say its shape and unit"
