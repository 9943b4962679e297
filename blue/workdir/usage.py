"""The text of --help, read from the configs so that it is always up to date."""

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from blue.workdir.stages import STAGES

CONFIGS = Path(__file__).resolve().parents[2] / "configs"  # only in a clone
COMMAND = (
    "python -m blue.main --config=configs/NAME.py[:tiny] --workdir=DIR "
    "[--config.FIELD=VALUE ...]"
)
NO_CONFIGS = (
    "  not installed by pip: take a clone's folder configs/, whose base.py has all "
    "fields"
)
EXIT_CODES = (
    "0 done; 2 a mistake in config, data or checkpoint;\n"
    "70 stopped on non-finite numbers; 71 hung, see hang-*.txt, start it again;\n"
    "75 preempted, start it again; 130 interrupted"
)


def text() -> str:
    """Usage, stages, configs, and all fields with their defaults."""
    stages = ((name, stage.does) for name, stage in STAGES.items())
    shipped = CONFIGS.is_dir()
    parts = [
        f"usage: {COMMAND}",
        "Trains and evaluates language models that write user profiles. The same "
        "command continues\na stopped run. :tiny is two steps of tiny models on "
        "made-up data.",
        "stages, run in the order of --config.stages:\n" + _rows(stages),
        "configs:\n" + (_rows(_configs()) if shipped else NO_CONFIGS),
        f"exit codes: {EXIT_CODES}",
    ]
    if shipped:
        heading = (
            "fields of configs/base.py with their defaults; [P]: a value of the paper:"
        )
        parts.append("\n".join([heading, *_fields()]))
    return "\n\n".join(parts) + "\n"


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"  {name:{width}}  {clause}" for name, clause in pairs)


def _configs() -> Iterator[tuple[str, str]]:
    """Path and first docstring line of each shipped config."""
    for path in sorted(CONFIGS.glob("[!_]*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        yield f"configs/{path.name}", doc.partition("\n")[0]


def _fields() -> Iterator[str]:
    """One line a field of configs/base.py: the flag, its default, its comment."""
    source = (CONFIGS / "base.py").read_text()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    alone = {n for n in comments if source.splitlines()[n - 1].lstrip()[0] == "#"}
    (function,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "get_config"
    )
    shown_to = function.body[0].lineno
    for node in function.body:
        if not isinstance(node, ast.Assign):
            continue
        for line in sorted(n for n in alone if shown_to < n < node.lineno):
            if comments[line].startswith("---"):
                yield f"\n{comments[line].lstrip('- ')}:"
        shown_to = last = node.end_lineno or node.lineno
        comment = [comments.get(last, "")]
        while last + 1 in alone and not comments[last + 1].startswith("---"):
            last += 1  # a comment that continues below
            comment.append(comments[last])
        name = ast.unparse(node.targets[0]).removeprefix("c.")
        if isinstance(node.value, ast.Call):  # a group of fields
            if any(comment):
                yield f"  {name}: {' '.join(comment)}"
        elif name != "c":
            flag = f"  --config.{name}={_value(node.value)}"
            yield f"{flag:<50}  {' '.join(comment)}".rstrip()


def _value(node: ast.expr) -> str:
    """The default as on the command line."""
    value = ast.literal_eval(node)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f'"{value}"' if isinstance(value, str) and " " in value else str(value)
