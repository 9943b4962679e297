import shutil

import pytest

from blue.stages import train_profiler
from blue.workdir import record
from tests.helpers.small_stages import make_config
from tools import compare_runs


@pytest.mark.slow
def test_a_run_is_as_good_as_itself(tmp_path, capsys):
    c = make_config()
    c.stages = ("profiler",)
    record.save(c, str(tmp_path / "run"))
    train_profiler.run(c, str(tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    compare_runs.main([str(tmp_path / "run"), str(tmp_path / "again")])
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split("|")[1].strip() for row in rows] == ["1+99", "1+99-popularity"]
    for row in rows:
        one, other, difference = row.split("|")[2:5]
        assert one == other and difference.strip() == "+0.000 [+0.000, +0.000]"
