"""A real log without a file: each documented function of the installed sources is a task, the
library calls in its body the tools it used.

* Sources: the standard library and the packages that jaxsac and its `route` extra pin, a fixed
  sorted list; tests, vendored copies and folders that are no library are left out.
* Context: module path, parameter names, the docstring's first two sentences. Not the imports: they
  stand in the same file as the calls.
* Tools: library names of those sources that the body calls, resolved through the imports and
  re-exports; one definition is one tool, under the name that the log uses most.
* No tools: names with a private part (a leading underscore), the record's own package (scipy's
  functions do not use scipy as a tool: those are its internals), built-in functions, and whatever
  the imports do not resolve (methods of local objects).
* Functions with no tool left are no records; equal tasks in two modules (vendored twins) count
  once.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import multiprocessing
import os
import pathlib
import platform
import shutil
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxsac.route.log_file import LogError, RouteLog, Tool, log_hash, read_log, write_log
from jaxsac.route.progress import bar
from jaxsac.route.sources import Module, read_module, summary

# Import name and distribution name; "python" stands for the standard library.
PACKAGES = {
    "equinox": "equinox",
    "jax": "jax",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "optax": "optax",
    "python": "python",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
}
_FORMAT = 1  # of the cached log: raise it when the rules above change

# Tests, applications, and what is gone since Python 3.12 and 3.13: without the last the logs of all
# versions are alike.
_NO_LIBRARY = {"test", "tests", "testing", "idle_test", "ensurepip", "idlelib", "turtledemo"}
_NO_LIBRARY |= {"distutils", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
_VENDORED = {"_vendor", "externals", "extern", "array_api_compat", "array_api_extra"}
# Importing them opens a browser, prints, or needs a display.
_NEVER_IMPORTED = {"antigravity", "this", "idlelib", "tkinter", "turtle"}


class Source(NamedTuple):
    """A file to read and the module that it is."""

    path: str
    module: str
    is_package: bool


def mine(
    packages: Sequence[str] = tuple(PACKAGES),
    *,
    processes: int = 1,
    progress: bool = False,
    cache: pathlib.Path | None = None,
) -> RouteLog:
    """The log of library calls in installed sources, deterministic for given versions.

    * `packages`: names of `PACKAGES`.
    * `processes`: above 1, parse in parallel (spawned processes, so a script needs the usual `if
      __name__ == "__main__"`).
    * `progress`: a bar on stderr.
    * `cache`: a folder that keeps the log under a hash of the sources.

    Raises: LogError for unknown or absent packages.
    """
    sources = [source for package in sorted(packages) for source in find_sources(package)]
    key = _key(sources)
    folder = None if cache is None else cache / f"mined-{key[:16]}"
    if folder is not None and (folder / "log.jsonl").is_file():
        with contextlib.suppress(LogError):  # a damaged cache is mined anew
            return _with_notes(read_log(folder / "log.jsonl"), packages, sources)
    modules = {module.name: module for module in _read_all(sources, processes, progress)}
    log = _with_notes(_collect(modules), packages, sources)
    if folder is not None:
        _keep(folder, log)
    return log


def cache_folder() -> pathlib.Path:
    """The user's cache folder for jaxsac, by the platform's custom; `JAXSAC_CACHE` overrides it."""
    home = pathlib.Path.home()
    folders = {
        "darwin": home / "Library" / "Caches",
        "win32": os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local",
    }
    folder = folders.get(sys.platform, os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return pathlib.Path(os.environ.get("JAXSAC_CACHE") or pathlib.Path(folder) / "jaxsac")


def find_sources(package: str) -> list[Source]:
    """The library sources of one package, sorted by path."""
    if package not in PACKAGES:
        raise LogError(f"cannot mine {package!r}: choose from {', '.join(PACKAGES)}.")
    if package == "python":
        root, prefix = pathlib.Path(sysconfig.get_path("stdlib")), ()
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise LogError(
                f"{PACKAGES[package]} is not installed, and the mined log needs it: pip install"
                " 'jaxsac[route]', or give a log file."
            )
        root, prefix = pathlib.Path(spec.submodule_search_locations[0]), (package,)
    sources = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).parts
        if any(part in _NO_LIBRARY or part in _VENDORED or "-" in part for part in parts[:-1]):
            continue
        names = prefix + parts[:-1] + (() if path.stem == "__init__" else (path.stem,))
        is_test = path.stem.startswith(("test_", "conftest")) or path.stem.endswith("_test")
        if all(name.isidentifier() for name in names) and not is_test:
            sources.append(Source(str(path), ".".join(names), path.stem == "__init__"))
    return sources


def _read_all(sources: list[Source], processes: int, progress: bool) -> Iterator[Module]:
    """The modules of the sources that this Python can parse."""
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(bar(len(sources), "parsing sources", shown=progress))
        found: Iterable[Module | None] = map(_read, sources)
        if processes > 1:  # spawned: a fork of a process that runs XLA's threads can hang
            context = multiprocessing.get_context("spawn")
            pool = concurrent.futures.ProcessPoolExecutor(processes, mp_context=context)
            found = stack.enter_context(pool).map(_read, sources, chunksize=16)
        for module in found:
            shown.update()
            if module is not None:
                yield module


def _read(source: Source) -> Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        return read_module(source.module, source.is_package, pathlib.Path(source.path).read_bytes())


def _collect(modules: dict[str, Module]) -> RouteLog:
    """Records and tools of the parsed modules: names resolved to definitions, own packages and
    private names left out, twins dropped.
    """
    library = (
        {name.split(".")[0] for name in modules} | set(sys.stdlib_module_names)
    ) - _NO_LIBRARY
    definitions: dict[str, str] = {}
    found = []
    twins = set()
    for module in sorted(modules.values(), key=lambda module: module.name):
        own = module.name.split(".")[0] + "."
        for function in module.functions:
            calls = []
            for call in function.calls:
                if call not in definitions:
                    definitions[call] = _definition(call, modules)
                private = any(part.startswith("_") for part in call.split("."))
                if (
                    not private
                    and call.split(".")[0] in library
                    and call not in modules
                    and not f"{call}.".startswith(own)
                    and not definitions[call].startswith(own)
                ):
                    calls.append(call)
            twin = (function.name, function.parameters, function.summary, function.calls)
            if calls and twin not in twins:
                twins.add(twin)
                found.append((module.name, function, calls))
    uses = collections.Counter(call for _, _, calls in found for call in calls)
    names: dict[str, str] = {}
    for call in sorted(uses, key=lambda call: (-uses[call], len(call), call)):
        names.setdefault(definitions[call], call)
    sets = [tuple(sorted({names[definitions[call]] for call in calls})) for _, _, calls in found]
    tools = {
        name: Tool(description=_description(name, definition, modules))
        for definition, name in names.items()
    }
    return RouteLog(
        contexts=[
            f"{module} ({', '.join(function.parameters)}): {function.summary}"
            for module, function, _ in found
        ],
        sets=sets,
        utilities=np.ones(len(found)),
        groups=[module for module, _, _ in found],
        tools=dict(sorted(tools.items())),
        notes={},
    )


def _split(name: str, modules: dict[str, Module]) -> tuple[str, list[str]]:
    """The longest prefix of a dotted name that is a module, and the rest."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:end])) in modules:
            return prefix, parts[end:]
    return "", parts


def _definition(name: str, modules: dict[str, Module], depth: int = 12) -> str:
    """Where a dotted name is defined, following re-exports; the name itself where the trail ends
    (extension modules, assignments).
    """
    prefix, rest = _split(name, modules)
    if not prefix or not rest or depth == 0 or rest[0] in modules[prefix].docstrings:
        return name
    target = modules[prefix].exports.get(rest[0])
    if target is not None and target != f"{prefix}.{rest[0]}":
        return _definition(".".join([target, *rest[1:]]), modules, depth - 1)
    for star in modules[prefix].stars:
        if star in modules and star != prefix:
            target = _definition(".".join([star, *rest]), modules, depth - 1)
            owner, inner = _split(target, modules)
            if owner and inner and inner[0] in modules[owner].docstrings:
                return target
    return name


def _description(name: str, definition: str, modules: dict[str, Module]) -> str:
    """A tool's own docstring: from the sources, else (extension modules) from the imported
    object.
    """
    prefix, rest = _split(definition, modules)
    docstrings = modules[prefix].docstrings if prefix else {}
    # Classes are called through __init__: it describes one without a docstring of its own.
    text = docstrings.get(".".join(rest)) or docstrings.get(".".join([*rest, "__init__"]))
    return summary(text or _runtime_docstring(name), sentences=4, characters=800)


def _runtime_docstring(name: str) -> str:
    parts = name.split(".")
    if parts[0] in _NEVER_IMPORTED | {"jax", "optax", "equinox"}:
        return ""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for end in range(len(parts) - 1, 0, -1):
            try:
                value = importlib.import_module(".".join(parts[:end]))
                for part in parts[end:]:
                    value = getattr(value, part)
                # Instances carry their class's docstring, which does not describe them.
                return (inspect.getdoc(value) or "") if callable(value) else ""
            except Exception:
                continue
    return ""


def _key(sources: list[Source]) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, platform.python_version()]).encode())
    for source in sources:
        digest.update(
            source.module.encode()
            + b"\0"
            + hashlib.sha256(pathlib.Path(source.path).read_bytes()).digest()
        )
    return digest.hexdigest()


def _with_notes(log: RouteLog, packages: Sequence[str], sources: list[Source]) -> RouteLog:
    versions = {
        PACKAGES[name]: importlib.metadata.version(PACKAGES[name])
        for name in sorted(packages)
        if name != "python"
    }
    notes = {"source": "mined", "python": platform.python_version(), "packages": versions}
    return log._replace(notes=notes | {"files": len(sources), "hash": log_hash(log)})


def _keep(folder: pathlib.Path, log: RouteLog) -> None:
    """Put the log into the cache in one rename; a cache that cannot be written is no reason to
    fail.
    """
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(dir=folder.parent, prefix=".mined-")
        try:
            write_log(scratch, log)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
