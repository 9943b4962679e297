"""Clean lines, and several logs as one."""

from blue.data.log import join
from tests.helpers.movielens_files import read, write_csv


def test_join_unifies_ids_and_keeps_the_first_text(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    write_csv(tmp_path / "a")
    other = [("0099", "New One (2001)", "War"), ("0007", "Else (1961)", "Noir")]
    ratings = ["2,0099,3,250", "0,0007,1,50", "2,0007,5,200"]
    write_csv(tmp_path / "b", ratings, other)
    log = join([read(tmp_path / "a"), read(tmp_path / "b")])
    assert log.name == "a+b" and log.user_ids == ["0", "1", "2"]
    assert log.item_ids == ["0007", "0012", "0099"]
    assert log.titles[0] == "L'Avventura (The Adventure) (1960)"
    assert log.columns["year"] == ["1960", "", "2001"]
    assert log.user.tolist() == [0, 1, 1, 2, 2]
    assert log.item.tolist() == [0, 1, 0, 0, 2]
    assert log.timestamp.tolist() == [50, 100, 300, 200, 250]
    assert log.rows_bad == {"join: duplicate (user, item, time)": 1}
    assert log.rows_read == 10
