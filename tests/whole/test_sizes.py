"""Every module has its test file, and nothing is too large to be read at once."""

import ast
import statistics

from tests.whole.test_layers import FILES, ROOMS, ROOT

MOST_WORDS = 15  # in the list of rooms
LONG_FILE = 500  # lines
MEDIAN_FILE = 140  # lines
LONG_FUNCTION, LONG_STAGE = 60, 110  # lines; `run` of a stage
MOST_PARAMETERS = 8
# What is read to follow one step of GRPO from its data to its update.
STEP = (
    "stages/train_profiler rewards/experience rewards/functions rewards/advantages "
    "training/losses training/policy"
).split()
STEP_LINES = 900

# A reward: its inputs and the fields of its section, none of which anybody passes.
MANY_PARAMETERS = {"rewards/functions:embedding"}
# Modules without a test file of their own: where they are tested, and why there.
TESTED_IN = {
    "hub/model": ("hub/test_export", "a tuple, without code of its own"),
}
# Test files that are named after something other than a module.
NOT_MODULES = {
    "data/readers/test_add_data_set": "a recipe of a README",
    "hub/test_export_parity": "exports in the libraries that read them",
    "models/test_add_family": "a recipe of a README",
    "rewards/test_add_reward": "a recipe of a README",
    "stages/test_add_stage": "a recipe of a README",
}


def name_of(path, folder):
    return str(path.relative_to(ROOT / folder).with_suffix(""))


MODULES = {name_of(path, "blue") for path in FILES}
TESTS = {name_of(path, "tests") for path in ROOT.glob("tests/**/test_*.py")}


def file_for(module):
    folder, _, name = module.rpartition("/")
    return f"{folder}/test_{name}".lstrip("/")


def test_every_module_has_its_test_file():
    missing = {m for m in MODULES if file_for(m) not in TESTS}
    assert missing == {*TESTED_IN}
    assert {where for where, _ in TESTED_IN.values()} <= TESTS
    assert len(TESTED_IN) <= 12


def test_every_test_file_is_named_after_a_module():
    of_modules = {file_for(module) for module in MODULES}
    rooms = {t for t in TESTS if t.partition("/")[0] in ROOMS or "/" not in t}
    assert rooms - of_modules == {*NOT_MODULES}


def functions(path):
    """(name, node) of every function in a file, those inside of others too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name_of(path, 'blue')}:{node.name}", node


def lines_of(path):
    return len(path.read_text().splitlines())


def test_files_are_short():
    long = [name_of(path, "blue") for path in FILES if lines_of(path) > LONG_FILE]
    assert not long
    assert statistics.median(map(lines_of, FILES)) <= MEDIAN_FILE


def test_functions_are_short():
    long = {}
    for path in FILES:
        for name, node in functions(path):
            of_stage = name.startswith("stages/") and node.name == "run"
            lines = node.end_lineno - node.lineno + 1
            if lines > (LONG_STAGE if of_stage else LONG_FUNCTION):
                long[name] = lines
    assert not long


def test_functions_have_few_parameters():
    many = {}
    for path in FILES:
        for name, node in functions(path):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([arg for arg in given if arg.arg not in ("self", "cls")])
            if count > MOST_PARAMETERS:
                many[name] = count
    assert many.keys() <= MANY_PARAMETERS, many


def test_a_step_of_grpo_is_read_in_a_few_files():
    lines = {name: lines_of(ROOT / "blue" / f"{name}.py") for name in STEP}
    assert sum(lines.values()) <= STEP_LINES, lines


def test_the_list_of_rooms_is_short():
    assert len(ROOMS) <= MOST_WORDS
