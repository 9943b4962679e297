"""The project as others get it: what is in the wheel and the sdist, and around them."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command, cwd=ROOT, **variables):
    """What a command printed; fails with it where it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


# --- files around the code


def test_the_citation_is_valid_and_of_this_version():
    """Keys and values that version 1.2.0 of the format asks for."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["cff-version"] == "1.2.0" and cff["type"] == "software"
    assert {"authors", "message", "title"} <= {*cff}
    assert cff["version"] == PROJECT["version"] and cff["license"] == PROJECT["license"]
    paper = cff["preferred-citation"]
    assert paper["type"] == "article" and "2605.06981" in paper["url"]
    for author in paper["authors"]:
        assert {*author} == {"given-names", "family-names"}
    assert paper["year"] == 2026 and 1 <= paper["month"] <= 12


def test_the_changelog_begins_with_what_is_to_come():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert headings[1].partition(" ")[0] == PROJECT["version"]


def test_the_workflow_runs_what_a_machine_here_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["all"]["steps"]
    assert steps[-1]["run"].endswith(".ci/run") and os.access(ROOT / ".ci/run", os.X_OK)
    assert workflow["permissions"] == {"contents": "read"}
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    entries = [hook["entry"].partition(" ")[0] for hook in hooks[0]["hooks"]]
    assert entries == ["ruff", "ruff", "pyright"]


def test_contributing_is_one_page_and_names_what_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text) < 5000
    for path in re.findall(r"(?:tests|tools|blue|configs|experiments)/[\w./]+", text):
        assert (ROOT / path).exists() or "<" in text.partition(path)[2][:1], path


# --- the archives


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """A wheel and an sdist of a clean copy, built without the network."""
    for module in ("build", "twine"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}, of the extra `test`")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone: the copy is of the files that git knows")
    folder = tmp_path_factory.mktemp("archives")
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z").split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "clone" / name).write_bytes((ROOT / name).read_bytes())
    run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist",
        cwd=folder / "clone",
    )  # fmt: skip
    return folder


def modules_of_the_clone():
    return {str(path.relative_to(ROOT)) for path in ROOT.glob("blue/**/*.py")}


@pytest.mark.slow
def test_a_wheel_has_the_modules_and_nothing_else(archives):
    (wheel,) = (archives / "dist").glob("*.whl")
    assert wheel.name == f"blue_profiles-{PROJECT['version']}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist()}
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == modules_of_the_clone()
    assert {name.partition("/")[2] for name in about} == {
        "METADATA", "RECORD", "WHEEL", "top_level.txt", "licenses/LICENSE",
    }  # fmt: skip


@pytest.mark.slow
def test_an_sdist_has_what_makes_and_describes_the_package(archives):
    (sdist,) = (archives / "dist").glob("*.tar.gz")
    names = {
        member.name.partition("/")[2]
        for member in tarfile.open(sdist).getmembers()
        if member.isfile()
    }
    about = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md"}
    made = {"PKG-INFO", "setup.cfg"}
    shipped = {
        str(path.relative_to(ROOT))
        for pattern in ("configs/*.py", "configs/*.md", "blue/**/*.md")
        for path in ROOT.glob(pattern)
    }
    made |= {"pyproject.toml", "MANIFEST.in"}
    names = {name for name in names if ".egg-info/" not in name}
    assert names == about | made | shipped | modules_of_the_clone()


@pytest.mark.slow
def test_twine_finds_no_fault(archives):
    told = run(
        sys.executable, "-m", "twine", "check", "--strict",
        *(archives / "dist").iterdir(),
    )  # fmt: skip
    assert told.count("PASSED") == 2


@pytest.mark.slow
def test_the_installed_package_works_from_another_folder(archives, tmp_path):
    """pip install into a fresh environment, which borrows the dependencies of ours."""
    (wheel,) = (archives / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "fresh")
    python = tmp_path / "fresh/bin/python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    packages = run(python, "-c", "import sysconfig as s; print(s.get_path('purelib'))")
    borrowed = Path(packages.strip()) / "borrowed.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n")

    script = (
        "import blue; from blue import load_profiler, load_encoder, read_log, rank; "
        "assert load_profiler.__module__ == 'blue.api'; print(blue.__file__)"
    )
    assert str(tmp_path / "fresh") in run(python, "-c", script, cwd=tmp_path)
    told = run(python, "-m", "blue.main", "--help", cwd=tmp_path)
    assert "write_profiles" in told and "not installed by pip" in told
    run(
        python, "-m", "blue.main", f"--config={ROOT}/configs/quickstart.py:tiny",
        "--workdir=run", "--config.stages=encoder,warm_start", cwd=tmp_path,
    )  # fmt: skip
    script = (
        "from blue import load_profiler; "
        "print(load_profiler('run/export/profiler').write([['orla lamp']]))"
    )
    assert "num_tokens=" in run(python, "-c", script, cwd=tmp_path)
