"""Writes all pages of docs/results again, from what is stored alone."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import tyro

from experiments.cost import (
    benchmark,
    compaction_cost,
    footprint,
    latency_tables,
    storage,
)
from experiments.pages import methods, penalties, runs, study, text
from experiments.records import RESULTS, Row, parse, write_whole

FOLDER = Path(__file__).parents[2] / "docs" / "results"
DRAWN = (
    "digits-relevance-3e85c80c-seed0",
    "lenet5-mnist-relevance-5ff06742-seed0",
    "transformer-multi30k-relevance-3dac3245-seed0",
    "transformer-taskmaster-relevance-b1d3e983-seed0",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Writes all pages of docs/results again, from what is stored alone."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs, to be stored in experiments/results first."""

    def validate(self) -> None:
        """Accepts any folders."""


def main(settings: Settings) -> None:
    for folder in settings.runs:
        print(f"Stored: {runs.store(folder)}")
    write(FOLDER)
    print(f"Written: {FOLDER}")


def write(folder: Path) -> None:
    """Writes all pages and figures into a folder.

    A page is its template, NAME.md beside this file, with the contents put in.
    """
    figures = folder / "figures"
    for name in DRAWN:
        runs.draw(name, figures)

    def drawn(name: str, draw_and_show: Callable[[Path, Row], str]) -> str:
        return measured(name, functools.partial(draw_and_show, figures))

    for name, contents in {
        "images": runs.images(),
        "methods": methods.methods(figures),
        "study": study.study(figures) | text.controls(),
        "penalties": penalties.penalties(),
        "text": text.text(),
        "cost": {
            "benchmark": drawn("benchmark", benchmark.draw_and_show),
            "compiled": measured("compile_for", benchmark.show_compiled),
            "compaction": measured("compaction", compaction_cost.show),
            "footprint": measured("footprint", footprint.show),
        },
        "storage": {
            "files": latency_tables.show_files(stored("latency")),
            "random": drawn("storage", storage.draw_and_show),
        },
        "latency": {
            "latency": latency_tables.draw_and_show(figures, stored("latency"))
        },
    }.items():
        template = Path(__file__).with_name(f"{name}.md").read_text()
        write_whole(folder / f"{name}.md", template.format(**contents).encode())


def measured(name: str, show: Callable[[Row], str]) -> str:
    return "\n".join(map(show, stored(name)))


def stored(name: str) -> list[Row]:
    paths = sorted((RESULTS / name).glob("*.json"))
    return [parse(path.read_text(), path) for path in paths]
