"""A run that is killed again and again ends as one without a break, to the bit.

Each kill is a SIGKILL of the whole process in another phase. It comes on a function
call of the library, so that the moment is the same on every machine.
`tools/faults/kill_runs.py` draws random moments.
"""

import concurrent.futures
import json
import shutil
import signal

import pytest

from tools.faults import kill_runs

pytestmark = pytest.mark.slow
ARGUMENTS = [
    *kill_runs.COMMAND,
    "--config.num_steps=4",
    "--config.eval_every=4",
    "--config.evaluate.bootstrap=50",
    "--config.evaluate.protocols=1+99",
]
KILLS = [  # the phase, and its n-th call in this start of the run
    ("update", 3),  # of step 2, whose data and tokens are drawn a second time then
    ("commit", 1),  # step 4 is on the disk, but for the file that says so
    ("profile lines", 3),  # 2 of 8 batches of users are written
    ("evaluation files", 4),  # the profiles are, the tables are not
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two workdirs, `whole` and `killed`, with what each start left behind."""
    root = tmp_path_factory.mktemp("kills")
    patch = pytest.MonkeyPatch()
    # One device: what eight of them share is the matter of other tests.
    patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

    def start(name, kill):
        spec = {
            "trace": str(root / f"{name}.trace"),
            "note": str(root / f"{name}.note"),
        }
        spec |= {"phase": kill[0], "nth": kill[1], "delay": 0} if kill else {}
        log = root / f"{name}.log"
        arguments = [*ARGUMENTS, f"--workdir={root / name}"]
        code, said = kill_runs.launch(spec, arguments, log=log)
        assert code == (-signal.SIGKILL if kill else 0), log.read_text()[-2000:]
        assert not kill or said[-1] == kill[0]

    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        whole = beside.submit(start, "whole", None)
        for kill in (*KILLS, None):
            start("killed", kill)
        whole.result()
    patch.undo()
    return root


def test_a_killed_run_ends_as_one_without_a_break(runs):
    """Parameters, moments, best, lines, profiles, evaluation, TensorBoard, files."""
    assert kill_runs.differences(runs / "whole", runs / "killed") == []
    metrics = kill_runs.lines_of(runs / "killed" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1, 2, 3]
    names = {path.name for path in (runs / "killed").iterdir()}
    assert names == {
        *("metrics.jsonl", "samples.jsonl", "config.json", "tensorboard", "tokenizer"),
        *("checkpoints", "data", "items", "candidates", "export"),
        *("profiles.jsonl", "profiles.json", "heartbeat.json"),
        *("evaluation.json", "evaluation.md", "evaluation_profiles.jsonl"),
    }


def test_a_step_done_again_draws_the_same_data_and_tokens(runs):
    assert (
        kill_runs.trace_differences(runs / "whole.trace", runs / "killed.trace") == []
    )
    lines = (runs / "killed.trace").read_text().splitlines()
    steps = [json.loads(line)[0] for line in lines]
    assert steps.count(2) > steps.count(0)  # or nothing was done again


def test_the_comparison_sees_what_is_lost_or_doubled(runs, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(runs / "killed", broken)
    metrics = broken / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines, lines[-1]]))
    (broken / "profiles.json").unlink()
    (broken / "items" / "x.tmp").write_text("")
    found = kill_runs.differences(runs / "whole", broken)
    assert found == [
        "metrics.jsonl: lines differ",
        "items/x.tmp: left over",
        "profiles.json: lost",
    ]
