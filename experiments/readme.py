"""Writes every table and figure of the README again, from what is stored alone.

    python -m experiments.readme [FOLDER ...]

stores each finished run FOLDER in experiments/results before, if any are given. What is
shown is all generated from there, and no run is made.
"""

import argparse
import sys
from pathlib import Path

from experiments.config import ExperimentError
from experiments.cost import benchmark, footprint, latency, storage
from experiments.frontiers import points, report as frontier_report
from experiments.reporting import files, illustrations, results, text_results
from experiments.reporting.place import Place
from experiments.study import report as study_report, texts


def write() -> None:
    """Writes the tables and figures of all parts."""
    results.write()
    text_results.write()
    illustrations.write()
    Place("benchmark", None).show(benchmark.table)
    frontier_report.write(points.STORE)
    study_report.write(study_report.STORE)
    texts.write()
    Place("footprint", None).show(footprint.table)
    files.show()
    Place("storage", None).show(storage.table)
    Place("latency", None).show(latency.table)


def main(arguments: list[str]) -> None:
    """Stores the given runs and writes everything that shows them, or others."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.readme",
        description="Writes every table and figure of the README again, from what is "
        "stored in experiments/results alone.",
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        help="a finished run, to be stored there before",
    )
    try:
        for folder in parser.parse_args(arguments).folders:
            illustrations.store(folder)
            print(f"Stored: {results.store(folder)}")
        write()
    except ExperimentError as error:
        sys.exit(f"error: {error}")
    print(f"Written: the tables and figures of {results.README}")


if __name__ == "__main__":
    main(sys.argv[1:])
