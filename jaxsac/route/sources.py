"""Read one Python source: documented functions with the library calls they make, docstrings,
re-exports. Pure `ast`: nothing runs.
"""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple


class Function(NamedTuple):
    """A documented function: where it lies, what it says, and the dotted names that its body calls,
    resolved through the imports.
    """

    name: str
    parameters: tuple[str, ...]
    summary: str
    calls: tuple[str, ...]


class Module(NamedTuple):
    """What one source file offers: functions, docstrings by qualified name, and names bound to
    something defined elsewhere.
    """

    name: str
    functions: tuple[Function, ...]
    docstrings: dict[str, str]
    exports: dict[str, str]
    stars: tuple[str, ...]


def read_module(name: str, is_package: bool, source: bytes) -> Module | None:
    """The facts of one module, or None where this Python cannot parse it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    exports: dict[str, str] = {}
    stars: list[str] = []
    docstrings: dict[str, str] = {}
    found: list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]] = []
    for qualifier, node in _top_level(tree, ""):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exports.update(_bindings(node, name, is_package))
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                stars.append(_base(node, name, is_package))
        else:
            docstrings[qualifier] = ast.get_docstring(node) or ""
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and docstrings[qualifier]:
                found.append((qualifier, node))
    functions = tuple(
        Function(
            qualifier,
            _parameters(node),
            summary(docstrings[qualifier]),
            _calls(node, exports, name, is_package),
        )
        for qualifier, node in found
    )
    return Module(name, functions, docstrings, exports, tuple(stars))


def summary(docstring: str, sentences: int = 2, characters: int = 400) -> str:
    """The first sentences of a docstring's opening text: sections, doctests and tables end it."""
    lines: list[str] = []
    for line in docstring.strip().splitlines():
        text = line.strip()
        if (
            text.startswith(">>>")
            or re.fullmatch(r"[-=~^*#]{3,}", text)
            or re.fullmatch(r"(Args|Arguments|Parameters|Returns|Raises|Examples?|Notes?)\W*", text)
        ):
            # A ruler underlines a section's title, which is then not part of the text.
            if lines and re.fullmatch(r"[-=~^*#]{3,}", text):
                lines.pop()
            break
        if lines or not re.fullmatch(
            r"[\w.]+\(.*\)( -> .*)?", text
        ):  # C functions start with their signature
            lines.append(text)
    text = " ".join(" ".join(lines).split())
    return " ".join(re.split(r"(?<=[.!?])\s+(?=[A-Z`'\"(*])", text)[:sentences])[:characters]


def _top_level(
    node: ast.AST, qualifier: str
) -> Iterator[
    tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom]
]:
    """Imports, classes, functions and methods outside function bodies, also under `if`, `try` and
    `with`.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{qualifier}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield f"{qualifier}{child.name}", child
            yield from _top_level(child, f"{qualifier}{child.name}.")
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield qualifier, child
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _top_level(child, qualifier)


def _base(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The absolute name of the module that `from ... import` reads."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, node.module] if node.module else parts)


def _bindings(node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> dict[str, str]:
    if isinstance(node, ast.Import):
        return {alias.asname: alias.name for alias in node.names if alias.asname} | {
            (top := alias.name.split(".")[0]): top for alias in node.names if not alias.asname
        }
    base = _base(node, module, is_package)
    return {
        alias.asname or alias.name: f"{base}.{alias.name}"
        for alias in node.names
        if alias.name != "*"
    }


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    given = node.args
    names = [argument.arg for argument in given.posonlyargs + given.args + given.kwonlyargs]
    return tuple(name for name in names if name not in ("self", "cls"))


def _calls(
    function: ast.FunctionDef | ast.AsyncFunctionDef,
    exports: dict[str, str],
    module: str,
    is_package: bool,
) -> tuple[str, ...]:
    """Dotted names called in the body (nested functions included), resolved through the module's
    and the function's own imports.

    A parameter or a variable that carries an imported name hides it: what such a name calls is not
    known, so it is left out.
    """
    bound = dict(exports)
    imported: dict[str, str] = {}
    called: list[list[str]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            bound.pop(node.arg, None)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.pop(node.id, None)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported.update(_bindings(node, module, is_package))
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and (parts := _dotted(node.func)):
                called.append(parts)
    bound.update(imported)
    return tuple(
        sorted({".".join([bound[parts[0]], *parts[1:]]) for parts in called if parts[0] in bound})
    )


def _dotted(node: ast.expr) -> list[str]:
    """`a.b.c` as its parts, [] for anything else (a call's result, a subscript)."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []
