"""Reading sources: what counts as a call, a summary, an import."""

import textwrap

import pytest

from jaxsac.route.sources import read_module, summary


def module(source, name="pack.sub.mod", is_package=False):
    found = read_module(name, is_package, textwrap.dedent(source).encode())
    assert found is not None
    return found


def calls(source, **options):
    return {function.name: set(function.calls) for function in module(source, **options).functions}


def test_calls_are_resolved_through_every_kind_of_import():
    found = calls('''
        import os
        import numpy as np
        import os.path
        import xml.dom.minidom as dom
        from json import dumps as to_text, loads
        from . import sibling
        from ..up import helper
        from .near import thing
        if True:
            import math
        try:
            import re
        except ImportError:
            re = None

        def f():
            """Does it."""
            os.path.join("a"); np.linalg.norm(1); dom.parse("x"); to_text({}); loads("1")
            sibling.work(); helper(); thing.method(); math.sqrt(2); re.compile("x")
            len([]); local = 3; local.bit_length(); np.zeros(3).sum()
    ''')
    assert found["f"] == {
        "os.path.join", "numpy.linalg.norm", "xml.dom.minidom.parse", "json.dumps", "json.loads",
        "pack.sub.sibling.work", "pack.up.helper", "pack.sub.near.thing.method", "math.sqrt",
        "re.compile", "numpy.zeros",
    }  # fmt: skip


def test_relative_imports_of_a_package_start_at_the_package():
    assert calls(
        'from . import a\ndef f():\n    """D."""\n    a.g()', name="pack.sub", is_package=True
    )["f"] == {"pack.sub.a.g"}
    assert calls('from . import a\ndef f():\n    """D."""\n    a.g()', name="pack.sub")["f"] == {
        "pack.a.g"
    }


def test_hidden_names_are_left_out_and_local_imports_count():
    found = calls('''
        import numpy as np
        import math, json

        def parameter(np):
            """D."""
            np.zeros(3)

        def variable():
            """D."""
            math = object()
            math.sqrt(2)

        def local_import():
            """D."""
            import scipy.linalg as la
            la.solve(1, 2)
            def inner():
                json.dumps(1)

        def undocumented():
            json.dumps(1)

        class Box:
            def method(self, x, *, key=None):
                """D."""
                json.loads("1")
    ''')
    assert found == {
        "parameter": set(),
        "variable": set(),
        "local_import": {"scipy.linalg.solve", "json.dumps"},
        "Box.method": {"json.loads"},
    }


def test_parameters_docstrings_and_exports():
    found = module('''
        from ._impl import solve as solve
        from ._more import *

        class Box:
            """A box."""

            def method(self, x, /, y, *rest, key=None, **more):
                """Use it."""
    ''', name="pack", is_package=True)  # fmt: skip
    assert found.functions[0].parameters == ("x", "y", "key")
    assert found.docstrings == {"Box": "A box.", "Box.method": "Use it."}
    assert found.exports == {"solve": "pack._impl.solve"} and found.stars == ("pack._more",)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("One. Two. Three.", "One. Two."),
        ("One line\nwrapped. And e.g. this one. No more.", "One line wrapped. And e.g. this one."),
        ("Solve it.\n\nParameters\n----------\nx : array", "Solve it."),
        ("Solve it.\n\nArgs:\n  x: a number.", "Solve it."),
        ("Solve it.\n>>> solve(1)\n2", "Solve it."),
        ("Title\n=====\nText.", ""),
        ("add(x1, x2, /, out=None)\n\nAdd arguments element-wise.", "Add arguments element-wise."),
        ("   ", ""),
    ],
)
def test_a_summary_is_the_opening_sentences(docstring, expected):
    assert summary(docstring) == expected


def test_a_summary_is_cut_at_its_length():
    assert summary("x" * 1000) == "x" * 400


def test_what_cannot_be_parsed_is_none():
    assert read_module("m", False, b"def f(:\n") is None
    assert read_module("m", False, b"x = '\0'") is None
