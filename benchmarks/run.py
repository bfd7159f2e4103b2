"""Measure the simulator itself: python benchmarks/run.py [--quick] [--only CASE ...] [--json] [--write FILE].

Every simulation is a process of its own, `pimserve run` with all metrics and the results folder. Prints tables in
Markdown; a missed target is shown, and is no error: time belongs to the machine and its other users as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from cases import CASES, Figure
from report import markdown, write_into


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the speed and memory of the simulator itself.")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, not how fast it is")
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the markers of this file")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="pimserve-benchmarks-") as scratch:
        for name in arguments.only or CASES:
            print(f"{name} ...", file=sys.stderr, flush=True)
            figures += CASES[name](Path(scratch), quick=arguments.quick)
    if arguments.quick:
        figures = [replace(figure, targets=()) for figure in figures]  # they are for the full sizes
    if arguments.json:
        print(json.dumps([figure.document() for figure in figures], indent=2))
    else:
        print(markdown(figures))
    if arguments.write is not None:
        write_into(arguments.write, markdown(figures))


if __name__ == "__main__":
    main()
