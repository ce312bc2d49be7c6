"""The house as a test: who may import whom, which names are public, and what `import jaxsac` brings
along.
"""

import ast
import pathlib
import subprocess
import sys
import types

import pytest
from public_names import PUBLIC, namespace

import jaxsac

PACKAGE = pathlib.Path(jaxsac.__file__).parent

# Bottom up. A file imports only from floors below its own and from its own folder.
FLOORS = [
    {"solution", "_canary", "_checks", "_files", "_sizes", "_loops"},
    {"_arguments"},
    {"_iterate", "_implicit", "_linear", "_quantiles", "trials"},
    {"_rounds"},
    {"prox", "gibbs"},
    {"designs", "losses"},
    {"group_lasso"},
    {"control", "subsample_q", "bandits", "bilevel"},
    {"problems", "plotting", "numpyro"},
    {"route"},
    {"__main__"},
]
FLOOR_OF = {room: level for level, floor in enumerate(FLOORS) for room in floor}

# The same inside a room: its files and folders, bottom up.
INNER = {
    "group_lasso": ["problem", "model", "methods", "solver", "choice"],
    "control": ["data", "policy", "imitation", "fits", "trust", "online", "robust", "conditions"],
    "subsample_q": ["data", "exact", "execute", "learn", "network", "trust"],
    "bandits": [
        "protocol",
        "sets",
        "estimate",
        "phased",
        "stepwise",
        "engine",
        "replay",
        "simulation",
        "comparison",
    ],
}

NOT_IMPORTED = {"scipy", "numpyro", "sklearn", "matplotlib", "tqdm", "pandas", "IPython"}


def room_of(path: pathlib.Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: pathlib.Path) -> set[tuple[str, ...]]:
    """What a file imports of jaxsac, inside functions too, as the parts of the dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}:{node.lineno}: relative imports hide the floor: write `from jaxsac...`"
            )
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {tuple(name.split(".")[1:]) for name in names if name.startswith("jaxsac.")}
    return found


def imported_rooms(path: pathlib.Path) -> set[str]:
    return {parts[0] for parts in imports(path)}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_obey_the_floors(path):
    room = room_of(path)
    assert room in FLOOR_OF, f"{room} has no floor: add it to the house"
    for other in imported_rooms(path) - {room}:
        assert other in FLOOR_OF, f"{path.name} imports {other}, which is no room of the house"
        assert FLOOR_OF[other] < FLOOR_OF[room], (
            f"{path.name} ({room}) may not import {other}: it is not on a floor below"
        )


def inner_breaches(room: str, path: pathlib.Path, relative: pathlib.PurePath) -> list[str]:
    """What a file of a room imports from beside or above its own folder there."""
    order = INNER[room]
    own = order.index(relative.with_suffix("").parts[0])
    inside = {parts[1] for parts in imports(path) if parts[0] == room and len(parts) > 1}
    return [name for name in inside if name not in order or order.index(name) > own]


@pytest.mark.parametrize("room", INNER)
def test_imports_obey_the_inner_order(room):
    for path in (PACKAGE / room).rglob("*.py"):
        relative = path.relative_to(PACKAGE / room)
        if str(relative) != "__init__.py":
            assert not inner_breaches(room, path, relative), relative


def test_a_breach_would_be_seen(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from jaxsac import route\n    import jaxsac.control.fits.fit\n")
    assert imported_rooms(bad) == {"route", "control"}
    bad.write_text("from jaxsac.group_lasso import model, solver\n")
    inside = pathlib.PurePath("methods", "bad.py")
    assert inner_breaches("group_lasso", bad, inside) == ["solver"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_names_of_other_libraries_and_no_unsafe_loading(path):
    text = path.read_text(encoding="utf-8")
    for forbidden in (
        "jax._src",
        "equinox.internal",
        "pickle",
        "filter_jit",
        "jax_enable_x64'",
        " eval(",
        "exec(",
    ):
        allowed = {
            "pickle": "allow_pickle=False",
            "jax_enable_x64'": "jax.config.update('jax_enable_x64', True)",
        }.get(forbidden)
        assert forbidden not in (text.replace(allowed, "") if allowed else text), (
            f"{path.name} uses {forbidden}"
        )


@pytest.mark.parametrize("room", PUBLIC)
def test_public_names_are_exactly_those_listed(room):
    module = namespace(room)
    submodules = {path.stem for path in pathlib.Path(module.__file__).parent.iterdir()}
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not (
            isinstance(value, types.ModuleType) and name in submodules and name not in PUBLIC[room]
        )
    }
    assert public == PUBLIC[room]


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_name_has_a_docstring(room):
    module = namespace(room)
    for name in PUBLIC[room]:
        value = getattr(module, name)
        assert isinstance(value, int) or (value.__doc__ and len(value.__doc__) > 40), (
            f"{room}.{name} needs a docstring"
        )


def test_import_is_light_and_silent():
    program = (
        "import sys, jax; before = jax.config.values.copy(); loaded = set(sys.modules)\n"
        "import jaxsac\n"
        f"brought = {NOT_IMPORTED!r} & (set(sys.modules) - loaded)\n"
        "assert not brought, brought\n"
        # A part of jax that is imported may bring an option of its own, at its default.
        "after = {name: jax.config.values[name] for name in before}\n"
        "assert after == before, 'import changed the configuration of jax'"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout == "" and done.stderr == "", (
        done.stdout + done.stderr
    )
