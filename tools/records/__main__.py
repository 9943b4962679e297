"""What experiments/ and the README keep of runs; from the repository's root:

python -m tools.records collect RUN OUT          a finished run -> its numbers and users
python -m tools.records curves METRICS CSV       metrics.jsonl -> means over steps
python -m tools.records tables RESULTS [...]     results.json of runs -> Markdown tables
python -m tools.records pages                    tables of both first pages

`tables` and `pages` print. Each has --help.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from blue.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.records",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collect = commands.add_parser("collect", help="numbers, curves and twenty users")
    collect.add_argument("run", type=Path, help="the workdir")
    collect.add_argument("out", type=Path, help="the folder to write to")
    curves = commands.add_parser("curves", help="means over blocks of steps, as CSV")
    curves.add_argument("metrics", type=Path, help="a run's metrics.jsonl")
    curves.add_argument("csv", type=Path, help="the file to write")
    curves.add_argument("--block", type=int, default=25, help="steps a row")
    tables = commands.add_parser("tables", help="tables of several runs")
    tables.add_argument("results", type=Path, nargs="+", help="NAME/results.json")
    commands.add_parser("pages", help="the tables of the first pages")
    run(parser.parse_args(argv))


def run(given: argparse.Namespace) -> None:
    """Runs the command; what only one of them needs is imported there."""
    if given.command == "collect":
        from tools.records.collect import collect

        collect(given.run, given.out)
    elif given.command == "curves":
        from tools.records import curves

        curves.write(given.metrics, given.csv, block=given.block)
    elif given.command == "tables":
        from tools.records.tables import print_tables

        print_tables(given.results)
    else:
        from tools.records import pages

        print(pages.first_page(), pages.block(pages.load("quickstart")), sep="\n\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
