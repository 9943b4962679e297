"""The script that pairs the test commands of two revisions: what it reads and tells."""

import pytest

from tools.bench import time_tests
from tools.bench.time_tests import Result

LINE = "python3 -m venv .e && .e/bin/pip install -q -e '.[test]' && .e/bin/python"


def test_the_command_is_taken_from_the_readme(tmp_path):
    (tmp_path / "README.md").write_text(
        "```\npython3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python "
        f"-m blue.main\n{LINE} -m pytest -q -n 2 --dist loadfile\n```\n"
    )
    assert time_tests.find_command(tmp_path) == (
        ".e",
        ".e/bin/pip install -q -e '.[test]'",
        ("-q", "-n", "2", "--dist", "loadfile"),
    )
    (tmp_path / "README.md").write_text("no command\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/README.md").write_text(f"Run `{LINE} -m pytest -q`.\n")
    assert time_tests.find_command(tmp_path).arguments == ("-q",)
    (tmp_path / "tests/README.md").unlink()
    with pytest.raises(ValueError, match="no README has a test command"):
        time_tests.find_command(tmp_path)
    assert "loadfile" in time_tests.find_command(time_tests.ROOT).arguments


def test_passed_tests_are_counted_by_the_last_line():
    line = "1608 passed, 2 skipped, 1 warning in 286.13s (0:04:46)\n"
    assert time_tests.count_passed(f"7 passed\n....\n{line}") == 1608
    assert time_tests.count_passed("ERROR: file not found") == 0
    assert time_tests.count_passed("") == 0


def test_the_ratio_is_the_median_of_the_rounds():
    old = [Result(cpu, 9.0, 100, 0) for cpu in (100.0, 200.0, 400.0)]
    new = [Result(cpu, 5.0, 120, 0) for cpu in (50.0, 80.0, 400.0)]
    found = time_tests.compare(old, new)
    assert found["cpu_ratio"] == 0.5  # of .5, .4 and 1
    assert (found["old_cpu_s"], found["new_cpu_s"]) == (200.0, 80.0)
    assert (found["old_tests"], found["new_tests"]) == (100, 120)


def test_processes_that_were_waited_for_are_counted(tmp_path):
    """Half a second of work in a child of pytest's process."""
    (tmp_path / "test_a.py").write_text(
        "import subprocess, sys\n"
        "WORK = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "def test_a():\n"
        "    subprocess.run([sys.executable, '-c', WORK], check=True)\n"
    )
    log = tmp_path / "log"
    result = time_tests.run_tests(time_tests.sys.executable, tmp_path, ["-q"], log)
    assert (result.tests, result.code) == (1, 0) and result.cpu_s > 0.5


def test_an_unknown_revision_is_one_line(capsys):
    assert time_tests.main(["--old=nosuchrevision"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nosuchrevision: no such revision of ")
