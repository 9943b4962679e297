import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A file imports only from rows below its own; models/ and data/ also from themselves.
LAYERS = [
    {"main"},
    {"settings", "usage"},  # the command line
    {"plan"},  # what the stages cost
    {"train_profiler", "train_encoder", "warm_start", "write_profiles"},  # stages
    {"watch"},  # what people see of a stage
    {"evaluate", "session", "experience"},  # what training stages share
    {"cold_start", "comparison"},
    {"cohort"},  # whom an evaluation is about
    {"sources", "export"},  # config and workdir -> data, tokenizers, models
    {"card"},  # of an exported model
    {"foreign", "adapters"},  # encoders that are not ours; LoRA from stage to stage
    {"resume", "run_lock"},  # whether a run may go on
    {"judges"},
    {"inference", "queries", "report", "baselines"},
    {"panel"},  # what profiles are like
    {"updates"},  # jitted programs that learn
    {"sampling", "scoring", "ranking"},  # that write; that read; that rank
    {"programs", "protocols", "summary"},  # what a jitted program is; ranks
    {"prompts", "rollout", "rewards", "advantages", "losses", "metrics"},
    {"packing"},  # texts -> rows
    {"health", "alarms"},  # what the numbers of a step say
    {"flops", "plan_report"},  # what programs cost, by formula and in words
    {"models", "data", "tokenizer"},
    {"unigram"},
    {"startup"},  # devices and hosts as expected
    {"sharding", "checkpoints", "optimizers", "writer", "bad_batches", "hub", "record"},
    {"compile_cache", "xla_flags"},  # how programs are compiled
    {"tracing"},  # what the devices do
    {"preemption", "watchdog", "disk", "distributed"},  # when a process leaves
    {"hlo", "chips"},  # a compiled program's text; what a chip can do
    {"errors"},
]
PAPER = {"advantages", "losses", "metrics", "rewards"}  # import nothing of BLUE
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(p for p in ROOT.glob("blue/**/*.py") if p != ROOT / "blue/__init__.py")


def imports(path):
    """Dotted names of the modules and names that `path` imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    part = path.relative_to(ROOT / "blue").parts[0].removesuffix(".py")
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in {"configs", "tests", "tools", "experiments"}, name
        if top == "blue":
            other = rest.partition(".")[0]
            inside = other == part in {"models", "data"}
            assert inside or LEVEL[part] < LEVEL[other], name
            assert part not in PAPER, name


def test_every_file_has_a_layer():
    parts = {p.relative_to(ROOT / "blue").parts[0].removesuffix(".py") for p in FILES}
    assert parts == set(LEVEL)


def test_configs_import_only_configs():
    for path in (ROOT / "configs").glob("*.py"):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert tops <= {"configs", "ml_collections"}, path
