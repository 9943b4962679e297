"""CPU seconds of the test command of two revisions, on one machine.

python tools/bench/time_tests.py [--old=6d1e727] [--new=HEAD] [--fresh] [--rounds=1]

Each revision is cloned into a temporary folder, one after the other. It runs the pytest
part of the test command in its README, with an empty compile cache. Both run in the
Python that runs this script. With --fresh each has an environment of its own, installed
as the command says, for revisions that need different packages. CPU seconds are user
and system time of pytest and of all processes it started. Machines differ by half and
more: only the ratio counts.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"^python3 -m venv (\S+) && (.+) && (\S+) -m pytest(.*)$", re.M)
COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")
PATIENCE_S = 30.0  # between two lines of progress


class Command(NamedTuple):
    """The test command of a README, in its parts."""

    environment: str  # folder of the environment
    install: str  # a shell command that fills it
    arguments: tuple[str, ...]  # of pytest


class Result(NamedTuple):
    """What one run of the tests took."""

    cpu_s: float
    wall_s: float
    tests: int  # that passed
    code: int  # exit code of pytest


def find_command(folder: Path) -> Command:
    """The test command of the clone in `folder`: of README.md, else of another README.

    Raises `ValueError` where there is none.
    """
    pages = [folder / "README.md", *sorted(folder.glob("*/README.md"))]
    for page in (p for p in pages if p.exists()):
        found = COMMAND.search(page.read_text("utf-8").replace("`", "\n"))
        if found:
            environment, install, _, arguments = found.groups()
            return Command(environment, install, tuple(arguments.split()))
    raise ValueError(f"{folder}: no README has a test command")


def count_passed(output: str) -> int:
    """Number of passed tests by pytest's last line; 0 where it is not there."""
    lines = output.strip().splitlines()
    counts = {name: int(n) for n, name in COUNT.findall(lines[-1] if lines else "")}
    return counts.get("passed", 0)


def clone(revision: str, folder: Path) -> str:
    """Checks `revision` of this repository out in `folder`; returns its short hash.

    Raises `ValueError` where git does not know it.
    """
    git = ["git", "-C", str(ROOT)]
    name = [*git, "rev-parse", "--short", "--verify", f"{revision}^{{commit}}"]
    found = subprocess.run(name, capture_output=True, text=True)
    if found.returncode:
        raise ValueError(f"{revision}: no such revision of {ROOT}")
    commit = found.stdout.strip()
    subprocess.run(
        ["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(folder)], check=True
    )
    checkout = ["git", "-C", str(folder), "checkout", "--quiet", "--detach", commit]
    subprocess.run(checkout, check=True)
    return commit


def run_tests(python: str, folder: Path, arguments: Sequence[str], log: Path) -> Result:
    """Runs pytest in `folder`, its output in `log`, and tells how far it is."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment["PYTHONPATH"] = str(folder)
    started = told = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [python, "-m", "pytest", *arguments],
            cwd=folder, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() - told > PATIENCE_S:
                    told = time.monotonic()
                    done = re.findall(r"\[ *(\d+)%\]", log.read_text())
                    say(f"  {told - started:.0f} s, {done[-1] if done else 0}%")
                time.sleep(0.2)
        except BaseException:
            process.kill()
            raise
    return Result(
        usage.ru_utime + usage.ru_stime,
        time.monotonic() - started,
        count_passed(log.read_text()),
        os.waitstatus_to_exitcode(status),
    )


def compare(old: Sequence[Result], new: Sequence[Result]) -> dict[str, float]:
    """Medians of both, and new over old round by round."""
    median = lambda field, runs: statistics.median(getattr(r, field) for r in runs)
    ratios = [b.cpu_s / a.cpu_s for a, b in zip(old, new, strict=True)]
    return {
        "old_cpu_s": median("cpu_s", old),
        "new_cpu_s": median("cpu_s", new),
        "old_wall_s": median("wall_s", old),
        "new_wall_s": median("wall_s", new),
        "old_tests": old[-1].tests,
        "new_tests": new[-1].tests,
        "cpu_ratio": statistics.median(ratios),
    }


def say(line: str) -> None:
    """A line of progress; the result alone goes to stdout."""
    print(line, file=sys.stderr, flush=True)


def measure(side: str, revision: str, folder: Path, *, fresh: bool) -> Result:
    """Clones `revision` into `folder` and runs its tests there.

    Raises `ValueError` for a revision without a test command, or whose tests fail.
    """
    commit, log = clone(revision, folder), folder.with_suffix(".log")
    command, python = find_command(folder), sys.executable
    if fresh:
        python = str(folder / command.environment / "bin" / "python")
        say(f"{side} {commit}: {command.install}")
        make = f"python3 -m venv {command.environment} && {command.install}"
        subprocess.run(make, shell=True, cwd=folder, check=True)
    say(f"{side} {commit}: pytest {' '.join(command.arguments)}")
    result = run_tests(python, folder, command.arguments, log)
    say(f"  {result.cpu_s:.0f} CPU s, {result.wall_s:.0f} s")
    if result.code:
        say("\n".join(log.read_text().splitlines()[-30:]))
        raise ValueError(f"{revision}: pytest ended with exit code {result.code}")
    return result


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 2 with one line for a mistake and for tests that fail."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", default="6d1e727", help="revision to compare with")
    parser.add_argument("--new", default="HEAD", help="revision that is compared")
    parser.add_argument(
        "--fresh", action="store_true", help="an environment of its own for each"
    )
    parser.add_argument("--rounds", type=int, default=1, help="runs of each")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds}: must be at least 1")
    names = {"old": options.old, "new": options.new}
    results: dict[str, list[Result]] = {"old": [], "new": []}
    with tempfile.TemporaryDirectory(prefix="test_time-") as scratch:
        for number in range(options.rounds):
            for side, revision in names.items():
                folder = Path(scratch) / f"{side}-{number}"
                try:
                    result = measure(side, revision, folder, fresh=options.fresh)
                except ValueError as error:
                    say(f"error: {error}")
                    return 2
                results[side].append(result)
    found = compare(results["old"], results["new"])
    if options.json:
        print(json.dumps(found))
        return 0
    for side, name in names.items():
        print(
            f"{side} {name}: {found[f'{side}_cpu_s']:.0f} CPU s, "
            f"{found[f'{side}_wall_s']:.0f} s, {found[f'{side}_tests']:.0f} tests"
        )
    print(f"new over old: {found['cpu_ratio']:.2f} of the CPU seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
