"""README and docs are true: their examples run as written, their links and commands name what
exists, and the README's test command is what `.ci/run` runs.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from jaxsac.solution import Reason, Status

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}

# Runs the blocks of all pages in one process: those of the README each by itself, those of another
# page one after the other.
RUNNER = """
import json, sys, time, traceback

failures = []
for page, blocks in json.load(sys.stdin).items():
    names = {}
    for number, block in enumerate(blocks, start=1):
        if page == "README.md":
            names = {}
        start = time.perf_counter()
        try:
            exec(compile(block, f"{page}, block {number}", "exec"), names)
        except BaseException:
            failures.append(f"{page}, block {number}: {traceback.format_exc()}")
        print(f"-- {page}, block {number}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
sys.exit("\\n".join(failures) or None)
"""


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "pages",
    [
        ["README.md"],
        pytest.param([page for page in TEXTS if page != "README.md"], marks=pytest.mark.slow),
    ],
    ids=["README", "docs"],
)
def test_every_example_runs_as_a_user_would_run_it(pages, tmp_path):
    """With jax's own defaults (float32, plain promotion), outside the checkout; compiled as the
    tests are.
    """
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(jax.config.read("jax_disable_most_optimizations")),
    }
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        cwd=tmp_path,
        env=environment,
        input=json.dumps({page: blocks(TEXTS[page]) for page in pages}),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_short_and_its_examples_too():
    assert len(README.splitlines()) < 150
    examples = blocks(README)
    assert len(examples) >= 6 and all(len(block.splitlines()) <= 10 for block in examples)


def test_one_line_commands():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2, "one for the main job, one for the tests"
    assert "jaxsac route" in commands[0] and "pytest" in commands[1]
    assert all("-c constraints.txt" in command for command in commands)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if not target.startswith(("https://", "#")):
            path, _, anchor = target.partition("#")
            assert (ROOT / page).parent.joinpath(path).exists(), target
            assert not anchor, "link to a page, not into it"


def test_the_readme_leads_to_every_page():
    for path in PAGES[1:]:
        assert f"(docs/{path.name})" in README, path.name


def test_benchmark_commands_name_rooms_that_exist():
    named = set(re.findall(r"python -m benchmarks ([a-z_]+)", "".join(TEXTS.values())))
    places = (ROOT / "benchmarks" / "rooms").glob("[!_]*.py"), (ROOT / "benchmarks").glob("gpu.py")
    rooms = {path.stem for place in places for path in place}
    assert len(named) >= 6 and named <= rooms


@pytest.mark.parametrize("page", TEXTS)
def test_users_read_the_words_of_the_field(page):
    prose = re.sub(r"`[^`]*`|^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"\b(rooms?|house|doors?|lanes?)\b", prose, flags=re.IGNORECASE)


def test_every_status_and_reason_is_explained():
    text = TEXTS["docs/statuses.md"]
    for code in (*Status, *Reason):
        assert f"`{code.name}`" in text, code.name


def test_pins_name_versions_only():
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(
            r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.]+( ; python_version [<>=]+ \"[0-9.]+\")?", line
        ), line
