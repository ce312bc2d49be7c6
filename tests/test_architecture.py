"""The house as a test: who may import whom, which names are public, and what `import jaxsac` brings
along.
"""

import ast
import importlib
import pathlib
import subprocess
import sys
import types

import pytest

import jaxsac

PACKAGE = pathlib.Path(jaxsac.__file__).parent

# Bottom up. A file imports only from floors below its own and from its own folder.
FLOORS = [
    {"solution", "_canary", "_checks", "_files", "_sizes", "_loops"},
    {"_arguments"},
    {"_iterate", "_implicit", "_linear", "trials"},
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
    "bandits": ["sets", "estimate", "phased", "stepwise", "engine", "simulation"],
}

PUBLIC = {
    "": {
        "FileError",
        "Groups",
        "Reason",
        "Solution",
        "SolverError",
        "Status",
        "run_trials",
        "summarise",
        "bandits",
        "bilevel",
        "control",
        "designs",
        "gibbs",
        "group_lasso",
        "losses",
        "prox",
        "subsample_q",
        "trials",
    },
    "gibbs": {
        "NO_ACTION",
        "Policy",
        "entropy",
        "expected",
        "kl",
        "log_partition",
        "log_prob",
        "marginals",
        "mode",
        "sample",
        "straight_through",
    },
    "group_lasso": {
        "Criterion",
        "CrossValidation",
        "LinearModel",
        "METHODS",
        "Problem",
        "Stability",
        "State",
        "cross_validate",
        "degrees_of_freedom",
        "ebic",
        "lam_max",
        "path",
        "refit",
        "simulated_lam",
        "solve",
        "stability_selection",
        "support_margin",
    },
    "control": {
        "Diagnosis",
        "FitState",
        "Interactions",
        "Log",
        "OffPolicyValue",
        "PairwisePolicy",
        "SparsePolicy",
        "Task",
        "ToolModel",
        "conditions",
        "diagnose",
        "fit",
        "fit_interactions",
        "fit_tool_model",
        "importance_value",
        "lam_max",
        "load_policy",
        "off_policy_value",
        "online",
        "pairwise_policy",
        "robust",
        "simulated_lam",
    },
    "control.online": {
        "DualAverage",
        "Learner",
        "dual_average",
        "dual_average_step",
        "explore",
        "start_learner",
        "update_learner",
    },
    "control.robust": {"fit_robust", "leverage_weights", "median_of_means", "robust_regression"},
    "control.conditions": {
        "Witness",
        "irrepresentability",
        "oracle_witness",
        "restricted_curvature",
        "signal_threshold",
    },
    "bandits": {
        "ActionSet",
        "Ball",
        "Box",
        "CrossPolytope",
        "Ellipsoid",
        "FromProjection",
        "FromSupport",
        "LpBall",
        "Masked",
        "Modular",
        "Phased",
        "Polytope",
        "Product",
        "Run",
        "Selection",
        "Simplex",
        "adaptive_greedy",
        "apsee",
        "apsee_greedy",
        "best_support",
        "branch_and_bound",
        "e2tc",
        "error_radius",
        "estc",
        "exploration_basis",
        "explore_then_commit",
        "greedy_support",
        "lin_ts",
        "lin_ucb",
        "optimistic_greedy",
        "phased_greedy",
        "simulate",
        "stopping_time",
        "submodularity_ratio",
    },
    "bilevel": {
        "Argmin",
        "Bilevel",
        "Diagnostics",
        "HypergradientCheck",
        "Method",
        "PairedOptimizer",
        "Problem",
        "State",
        "argmin",
        "check_hypergradient",
        "diagnose",
        "hypergradient",
        "init",
        "paired_adam",
        "solve",
        "step",
    },
    "subsample_q": {
        "AssignmentTable",
        "BACKENDS",
        "Bounds",
        "GapBounds",
        "HistogramSpace",
        "LocalActionModel",
        "METHODS",
        "Model",
        "Plan",
        "QTable",
        "Run",
        "Trajectory",
        "TypedModel",
        "TypedTable",
        "certify",
        "choose_k",
        "evaluate",
        "learn",
        "learn_from_trajectory",
        "lift",
        "network",
        "plan",
        "population_state",
        "q_learning",
        "simulate",
        "simulate_agents",
        "simulate_local_actions",
        "simulate_types",
        "solve",
        "solve_local_actions",
        "solve_types",
        "upper_bound",
        "upper_bound_types",
    },
    "prox": {
        "Groups",
        "Level",
        "Penalty",
        "ProximalState",
        "dual_group_norm",
        "dual_sparse_group_norm",
        "dual_tree_norm",
        "group_norm",
        "group_norms",
        "project_box",
        "project_l1_ball",
        "project_l2_ball",
        "project_simplex",
        "prox_elastic_net",
        "prox_group",
        "prox_l1",
        "prox_sparse_group",
        "prox_tree",
        "proximal",
        "sparse_group_norm",
        "tree_norm",
        "vector_norm",
    },
    "losses": {
        "BudgetedGibbs",
        "Huber",
        "Logistic",
        "Loss",
        "Multinomial",
        "Poisson",
        "SquareRoot",
        "Squared",
        "budgeted_gibbs",
        "huber",
        "resolve",
        "square_root",
    },
    "designs": {
        "BudgetedChoice",
        "Centred",
        "Dense",
        "Design",
        "MultiOutput",
        "as_design",
        "budgeted_choice",
        "dense",
        "largest_eigenvalue",
        "multi_output",
        "squared_norm",
    },
    "trials": {"Summary", "run_trials", "summarise"},
    "numpyro": {"Subset"},
    "plotting": {"COLORS", "color_of", "learning_curves", "methods", "strengths"},
    "bilevel.rl": {
        "MDP",
        "SoftValues",
        "Trajectories",
        "expected_return",
        "natural_gradient",
        "policy_problem",
        "policy_value",
        "rollout",
        "sampled_policy_problem",
        "sampled_return",
        "soft_solve",
        "softmax_policy",
    },
    "gibbs.rows": {"log_partition", "log_size_weights", "marginals"},
    "problems.bandits": {"Ratings", "ratings_model", "separated_parameter", "unit_diagonal_matrix"},
    "problems.bilevel": {
        "Cleaning",
        "Smooth",
        "Split",
        "breast_cancer",
        "cleaning_lower",
        "cleaning_upper",
        "cross_entropy",
        "diabetes",
        "digits_cleaning",
        "feature_weights_lower",
        "feature_weights_upper",
        "group_weights_lower",
        "group_weights_penalty",
        "group_weights_prox",
        "group_weights_upper",
        "logistic",
        "ridge_logistic_lower",
        "smooth",
        "smooth_hypergradient",
        "smooth_lower",
        "smooth_upper",
    },
    "problems.bilevel_rl": {
        "FourRooms",
        "RewardBed",
        "Segments",
        "Stackelberg",
        "bandit_bed",
        "enumerate_segments",
        "four_rooms",
        "preference_loss",
        "random_reward_bed",
        "sampled_preference_loss",
        "shaping_features",
        "stackelberg",
    },
    "problems.control_pomdp": {
        "Episode",
        "ToolPOMDP",
        "compress",
        "error_bound",
        "repair_problem",
        "rollout",
    },
    "problems.control_recovery": {
        "Regression",
        "gaussian_regression",
        "random_actions",
        "rotated_regression",
        "sphere",
    },
    "problems.regression": {
        "GroupRegression",
        "ar1_design",
        "group_classification",
        "group_regression",
    },
    "problems.subsample_q": {
        "GlobalLocal",
        "LocalActions",
        "admission",
        "constrained_exploration",
        "demand_response",
        "dispatch",
        "gaussian_squeeze",
        "mode_tracking",
        "power_of_k",
        "random",
    },
    "problems.tool_logs": {"ToolLog", "sparse_tool_log"},
    "subsample_q.network": {
        "Environment",
        "QNetwork",
        "Training",
        "from_model",
        "learn_network",
        "network_table",
    },
}

# What `import jaxsac` may load, beside the standard library and what these bring: anything else
# belongs in an extra.
EXTRAS_ONLY = {"numpyro", "sklearn", "matplotlib", "tqdm", "pandas", "IPython"}


def namespace(name: str):
    """The public module of a dotted name; the package itself for ""."""
    return importlib.import_module(f"jaxsac.{name}" if name else "jaxsac")


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
        "import sys, jax; before = jax.config.values.copy(); import jaxsac\n"
        f"assert not {EXTRAS_ONLY!r} & set(sys.modules), {EXTRAS_ONLY!r} & set(sys.modules)\n"
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
