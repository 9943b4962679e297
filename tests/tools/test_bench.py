import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench import growth, pair

ROOT = Path(__file__).parents[2]
GROUP = ("--users=2", "--g=2", "--prompt=32", "--new=4")


def test_pairs_are_compared_one_by_one():
    line = lambda s, mib: {
        "peer": "x", "users": 2, "cpu_s": {"med": s}, "mib": mib, "versions": {}
    }  # fmt: skip
    found = pair.compare(
        [line(2.0, 10), line(4.0, 10), line(8.0, 10)],
        [line(1.0, 5), line(8.0, 5), line(4.0, 5)],
    )
    assert found["metrics"]["cpu_s"] == {
        "a": {"med": 4.0, "min": 2.0, "max": 8.0},
        "b": {"med": 4.0, "min": 1.0, "max": 8.0},
        "b_over_a": 0.5,  # the median of 1/2, 2 and 1/2
    }
    assert found["metrics"]["mib"]["b_over_a"] == 0.5
    assert found["runs"] == 3


def test_who_goes_first_changes_with_every_round(tmp_path):
    say = f"import sys; open({str(tmp_path / 'log')!r}, 'a').write(sys.argv[1]); "
    say += "print('{\"peer\": \"' + sys.argv[1] + '\"}')"
    commands = [[sys.executable, "-c", say, name] for name in "ab"]
    lines = pair.run_by_turns(commands, 3)
    assert (tmp_path / "log").read_text() == "abbaab"
    assert [[line["peer"] for line in side] for side in lines] == [["a"] * 3, ["b"] * 3]


def test_the_exponent_is_that_of_the_last_two_points():
    points = [
        {"size": n, "seconds": {"part": s}, "mib": 1}
        for n, s in ((400, 16.0), (100, 1.0), (200, 2.0))
    ]
    curves = growth.summed(points)
    assert curves["sizes"] == [100, 200, 400]
    assert curves["seconds"]["part"] == {"values": [1.0, 2.0, 16.0], "exponent": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "figures"),
    [
        ("generate", (*GROUP, "--reps=1"), {"cpu_s", "decode_step_cpu_ms"}),
        ("grpo_step", (*GROUP, "--steps=1"), {"step_cpu_s", "update_cpu_s"}),
        ("encode", ("--n=8", "--batch=4", "--reps=1"), {"texts_per_cpu_s"}),
        ("contrastive_step", ("--batch=4", "--hi=32", "--steps=1"), {"step_cpu_s"}),
    ],
)
def test_every_benchmark_prints_one_line(script, options, figures):
    command = [sys.executable, f"tools/bench/{script}.py", "--size=mini", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["peer"], found["bench"]) == ("blue", script)
    assert all(found[key]["med"] > 0 for key in figures)
    assert found["peak_rss_mib"] > 0 and "jax" in found["versions"]
