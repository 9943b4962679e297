"""The READMEs against the code: commands, paths, fields, tables, sizes, sentences."""

import ast
import csv
import json
import random
import re
import shlex
import stat
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from blue.main import main
from blue.workdir import settings
from blue.workdir.stages import STAGES
from configs import base
from tests.helpers.recipes import python_blocks

ROOT = Path(__file__).parents[2]
SKIPPED = {"build", "dist", "runs"}  # beside hidden folders: what runs and builds leave
TEXT = {  # path from the root -> text
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("*/**/*.md")])
    if not any(p in SKIPPED or p[0] == "." for p in path.relative_to(ROOT).parts)
}
PAGES = {  # written by hand: no evaluation.md, users.md, ... of a run
    name: text for name, text in TEXT.items() if name.endswith("README.md")
} | {name: TEXT[name] for name in TEXT if name.startswith("experiments/real_logs/")}
README = PAGES["README.md"]
ROOMS = sorted(
    p.name for p in (ROOT / "blue").iterdir() if (p / "__init__.py").exists()
)
CONCEPTS = re.findall(
    r"^\| [^|]+ \| `([\w/]+\.py)` \| `(\w+)` \|$", PAGES["blue/README.md"], re.M
)

ENDINGS = (".py", ".json", ".md")  # of files whose name begins as a section does
every_page = pytest.mark.parametrize("name", PAGES)


# --- how large


def test_the_first_page_is_short():
    assert len(README.encode()) <= 10_000 and len(README.splitlines()) <= 150
    assert README[: README.index("\n## ")].count("\n") <= 60  # the first screen


@every_page
def test_pages_are_short(name):
    assert len(PAGES[name].encode()) <= 12_000


def sentences(text):
    """The prose of a page: no code, tables, headings; inline code is one word."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    lines = []
    for line in text.splitlines():
        item = re.match(r"(?:\*|\d+\.) (.*)", line)
        if line.startswith(("#", "|", "    ")):
            line = ""
        lines += ["", item[1]] if item else [line.strip()]
    for paragraph in "\n".join(lines).split("\n\n"):
        words = re.sub(r"`[^`]*`", "code", paragraph.replace("\n", " "))
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", words)
        yield from re.split(r"(?<=[.!?])\**\s+", words.strip())


@every_page
def test_a_sentence_has_at_most_25_words(name):
    for sentence in sentences(PAGES[name]):
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        assert len(words) <= 25, sentence


def test_sentences_are_told_apart():
    page = (
        "# A title\n\nOne two. Three `a b c`\nfour!\n\n    code\n* five\n* six\n\n|a|\n"
    )
    found = [s for s in sentences(page) if s]
    assert found == ["One two.", "Three code four!", "five", "six"]


# --- the first page


def test_the_first_screen_has_exactly_two_commands():
    commands = re.findall(r"^python3 -m venv .*$", README, re.M)
    assert len(commands) == 2 and README.count("```bash") == 2
    assert README.index(commands[1]) < README.index("\n## ")  # before any section
    assert "configs/quickstart.py" in commands[0] and "pytest" in commands[1]
    assert (ROOT / "configs/quickstart.py").exists()


def test_the_results_are_the_recorded_ones():
    from tools.records import pages

    quickstart = pages.load("quickstart")
    assert pages.block(quickstart) in PAGES["experiments/README.md"]
    assert pages.first_page() in README
    (gain,) = re.findall(r"`blue` - `base`: [^)]*", README)
    assert f"* {gain}\n" in pages.block(quickstart)


def test_the_last_lines_of_the_quickstart_are_the_recorded_ones():
    page = (ROOT / "experiments/quickstart/evaluation.md").read_text()
    shown = re.search(
        r"    next item: (.*)\n      base: (.*)\n      blue: (.*)\n", README
    )
    last = page[page.rindex("### User") :]
    item, *profiles = shown.groups()
    assert f"\nNext item: {item}\n" in last
    assert re.findall("^> (.*)$", last, re.M) == profiles


def test_every_room_is_in_both_maps():
    for room in ROOMS:
        assert f"(blue/{room}/README.md)" in README
        assert f"({room}/README.md)" in PAGES["blue/README.md"]


# --- names


@pytest.mark.parametrize("path, name", CONCEPTS, ids=lambda s: s)
def test_concepts_are_where_the_table_says(path, name):
    tree = ast.parse((ROOT / path).read_text())
    assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def test_the_table_is_not_empty():
    assert len(CONCEPTS) >= 14


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_lists_its_files(room):
    page = PAGES[f"blue/{room}/README.md"]
    rows = re.findall(r"^\| ((?:`[\w/]+\.py`(?:, )?)+) \|", page, re.M)
    listed = [file for row in rows for file in re.findall(r"`([^`]+)`", row)]
    folder = ROOT / "blue" / room
    found = {str(p.relative_to(folder)) for p in folder.rglob("*.py")}
    listed = [file for file in listed if not file.startswith("tools/")]
    assert sorted(listed) == sorted(f for f in found if not f.endswith("__init__.py"))


@every_page
def test_links_and_paths_exist(name):
    text = PAGES[name]
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            path, _, section = link.partition("#")
            target = (ROOT / name).parent / path
            assert target.exists(), link
            headings = (
                re.findall(r"^#+ (.*)$", target.read_text(), re.M) if section else ()
            )
            slugs = [
                re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings
            ]
            assert not section or section in slugs, link
    roots = "blue|configs|experiments|tests|tools"
    for path in re.findall(rf"(?<![\w/.=-])((?:{roots})/[\w./-]*\w/?)", text):
        unnamed = path.replace("/NAME.py", "")
        assert any((ROOT / start / unnamed).exists() for start in ("", "blue")), path


def test_stages_and_configs_are_in_their_tables():
    page = PAGES["configs/README.md"]
    for stage in STAGES:
        assert f"| `{stage}` |" in page
    for path in (ROOT / "configs").glob("[!_]*.py"):
        assert f"| `configs/{path.name}` |" in page


@every_page
def test_fields_exist(name):
    config = base.get_config()
    named = re.findall(r"--config\.([a-z_][\w.]*\w)", PAGES[name])
    named += [
        field
        for field in re.findall(
            r"`([a-z_]+(?:\.[a-z_]\w*)+)(?:=[^`]*|\.\*)?`", PAGES[name]
        )
        if field.partition(".")[0] in config and not field.endswith(ENDINGS)
    ]
    for field in named:
        node = config
        for part in field.split("."):
            assert part in node, field
            node = node[part]


# --- commands


def commands(text):
    """What a page's commands give to Python, each in one line."""
    text = text.replace("\\\n", " ")
    for line in re.findall(r"^(?:    )?(.*\bpython3? .*)$", text, re.M):
        yield from re.findall(r"(?:^|&& |/)python (.*?)(?= &&|$)", line)
    for flags in re.findall(r"^ +tools/launch/tpu_slice.sh .* -- +(.*)$", text, re.M):
        yield f"-m blue.main {flags}"  # what the script runs


ALL = sorted({(name, command) for name in PAGES for command in commands(PAGES[name])})


def test_commands_are_found():
    found = [command for name, command in ALL if name == "README.md"]
    assert len(found) == 2 and found[0].startswith("-m blue.main --config=")
    assert len(ALL) > 25


@pytest.mark.parametrize("name, command", ALL, ids=lambda s: s[:60])
def test_commands_can_be_read(name, command, monkeypatch):
    """The config takes the flags of a run; a tool is there and knows its options."""
    monkeypatch.chdir(ROOT)
    for form, example in (
        (r"\[[^]]*\]", ""),  # what may be left out
        (r"--config=\.\.\.", "--config=configs/base.py"),
        (r"=\.\.\.", "=DIR"),
        (r"configs/NAME\.py", "configs/base.py"),
    ):
        command = re.sub(form, example, command)
    file, *rest = shlex.split(command, comments=True)
    if file == "-m":
        module, *rest = rest
        file = f"{module.replace('.', '/')}.py"
        if module == "blue.main":
            config, workdir = settings.load(["blue", *rest])
            assert workdir and settings.check(config)
        if module in ("pytest", "venv"):
            assert all(Path(part).exists() for part in rest if "/" in part)
            return
    source = Path(file).read_text()
    options = {flag.partition("=")[0] for flag in rest if flag.startswith("--")}
    for option in options if file != "blue/main.py" else ():
        assert option in source or f'"{option[2:]}"' in source, option


def test_python_can_be_read():
    for text in PAGES.values():
        for block in python_blocks(text):
            ast.parse(block)


def test_the_algorithm_box_is_the_loop():
    """Every line of the box is a statement of the loop, in the same order."""
    box = README[README.index("for step in loop:") :].partition("```")[0]
    source = (ROOT / "blue/stages/train_profiler.py").read_text()
    loops = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.For)]
    (loop,) = [n for n in loops if ast.unparse(n.iter) == "loop"]
    lines = iter(ast.unparse(loop).splitlines())
    lines = (line.strip() for line in lines)
    for statement in ast.parse(box).body[0].body:
        assert ast.unparse(statement) in lines, ast.unparse(statement)


# --- "Your own log", word for word

OWN_LOG = PAGES["blue/data/README.md"]
COMMAND = "python -m blue.main --config=configs/profiler_table.py --workdir"


def written_out(pattern):
    """The indented block that begins like this."""
    (block,) = re.findall(rf"^    {pattern}.*\n(?:    .*\n)*", OWN_LOG, re.M)
    return [line.removeprefix("    ") for line in block.splitlines()]


def more_rows(events, items, *, users=60, of=130):
    """The example's rows, and more under its headers."""
    ids = [f"{i:04d}" for i in range(1000, 1000 + of)]
    items += [[i, f"Lamp no. {i}, {int(i) % 7}", f"B{int(i) % 5}", "9.5"] for i in ids]
    rng, start = random.Random(0), datetime(2024, 5, 1)
    for user in range(users):
        for place, item in enumerate(rng.sample(ids, 8)):
            when = start + timedelta(days=user, hours=9 * place)
            events.append([f"user {user}", item, f"{when:%Y-%m-%d %H:%M:%S}", "4"])


@pytest.mark.slow
def test_the_own_log_command_runs_to_profiles_and_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {}
    for name, header in (("clicks", "shopper,"), ("products", "sku,")):
        files[name] = list(csv.reader(written_out(header)))
    more_rows(files["clicks"], files["products"])
    for name, rows in files.items():
        with open(f"{name}.csv", "w", newline="", encoding="utf-8") as f:
            csv.writer(f).writerows(rows)
    command = " ".join(line.rstrip("\\") for line in written_out(COMMAND))
    python, module, name, config, *flags = shlex.split(command.replace("DIR", "."))
    assert (python, module, name) == ("python", "-m", "blue.main")
    config = config.replace("=configs/", f"={ROOT}/configs/")
    reduced = [  # :tiny has made-up data and its cuts
        "--config.data.name=table",
        "--config.data.min_interactions=5",
        "--config.data.window_policy=rolling",
    ]
    assert main(["blue", f"{config}:tiny", *reduced, *flags]) == 0

    profiles = Path("runs/mine/profiles.jsonl")
    lines = [json.loads(line) for line in profiles.read_text().splitlines()]
    (shown,) = re.findall(r'^ +(\{"user_id": .*)\.\.\.\}$', OWN_LOG, re.M)
    keys = re.findall(r'"(\w+)": ', shown)
    assert all(list(line) == keys for line in lines)
    users = [f"user {user}" for user in range(60)] + ["anna", "ben"]
    assert [line["user_id"] for line in lines] == sorted(users)
    assert stat.S_IMODE(profiles.stat().st_mode) == 0o600
    for page in ("evaluation.md", "export/profiler/README.md"):
        assert "\n| blue | 0." in Path("runs/mine", page).read_text()


def test_the_own_log_mistake_is_the_one_that_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shop").mkdir()
    for name, header in (("clicks", "shopper,"), ("products", "sku,")):
        Path(f"shop/{name}.csv").write_text("\n".join(written_out(header)))
    flags = [
        f"--config={ROOT}/configs/profiler_table.py",
        "--workdir=run",
        "--config.stage=evaluate",
        "--config.data.path=shop",
        "--config.data.events=clicks.csv",
        "--config.data.items=products.csv",
        "--config.data.columns.item_id=article",
    ]
    assert main(["blue", *flags]) == 2
    assert f"      {capsys.readouterr().err}" in OWN_LOG


def test_the_own_log_is_read_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shop").mkdir()
    for name, header in (("clicks", "shopper,"), ("products", "sku,")):
        Path(f"shop/{name}.csv").write_text("\n".join(written_out(header)))
    (block,) = re.findall(r"^```python\n(.*?)^profiler =", OWN_LOG, re.M | re.S)
    names = {}
    exec(block, names)
    assert (names["titles"], names["ratings"]) == (["Kettle, 1.7 l"], [5.0])
