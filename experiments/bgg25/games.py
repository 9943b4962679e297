"""One item file of BGG25's metadata: python games.py DIR > DIR/games.jsonl

Name and year, and the values of the properties type, category and mechanism, which the
source keeps in one row each.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path


def main(folder: Path) -> None:
    properties: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    with (folder / "raw_game_metadata_2.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            properties[row["id"]][row["property"]].append(row["value"])
    with (folder / "raw_game_metadata_1.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            of = properties[row["id"]]
            item = {"id": row["id"], "name": row["name"], "year": row["year"]}
            item |= {"type": of["type"][0] if of["type"] else None}
            item |= {"categories": of["category"][:3], "mechanisms": of["mechanism"]}
            print(json.dumps(item, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
