import stat

import numpy as np
import pytest

from blue.workdir import bad_batches


def test_a_batch_comes_back_as_it_was_for_the_owner_alone(tmp_path):
    arrays = {
        "tokens": np.arange(6, dtype=np.int32).reshape(3, 2),
        "mask": np.array([[True], [False], [True]]),
        "logprobs": np.array([[0.0, -1], [np.nan, 0], [0, np.inf]], np.float32),
        "advantages": np.array([0.0, 1.0, -1.0], np.float32),
    }
    path = bad_batches.save(tmp_path, "profiler", 7, arrays)
    assert path == tmp_path / "bad_batches/profiler-7.npz"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    stage, step, found = bad_batches.load(path)
    assert (stage, step) == ("profiler", 7)
    assert found.pop("bad_rows").tolist() == [1, 2]
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_a_handful_is_kept_the_first_and_the_newest(tmp_path):
    (tmp_path / "bad_batches").mkdir()
    for name in ("notes.txt", "encoder-1.npz"):
        (tmp_path / "bad_batches" / name).write_text("")
    for step in (9, 10, 11, 100, 101, 102, 103, 9):
        bad_batches.save(tmp_path, "profiler", step, {"x": np.zeros(2)})
    names = {path.name for path in (tmp_path / "bad_batches").iterdir()}
    kept = {f"profiler-{step}.npz" for step in (9, 10, 11, 100, 101, 103)}
    assert names == kept | {"notes.txt", "encoder-1.npz"}


def test_another_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="STAGE-STEP.npz"):
        bad_batches.load(tmp_path / "batch.npz")
