"""The command line: a subcommand for each task, and other commands."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import tyro

from experiments.config import Config
from experiments.settings import ExperimentError
from experiments.tasks import HELP, IMAGE_TASKS, TASKS

# Each module has `Settings`, with `validate`, and `main`.
COMMANDS = {
    "compare": "experiments.comparing.compare",
    "benchmark": "experiments.cost.benchmark",
    "footprint": "experiments.cost.footprint",
    "storage": "experiments.cost.storage",
    "latency": "experiments.cost.latency",
    "compaction": "experiments.cost.compaction_cost",
    "export": "experiments.running.export",
    "pages": "experiments.pages.pages",
}

OTHERS = "\n\n".join(
    (
        "sweep: many runs of a task, one for each combination of settings",
        "compare: the comparisons in docs/results, of methods and forms of relevance",
        "export: writes the sparse file of a run again, or its smaller dense network",
        "pages: stores finished runs, and writes docs/results again",
        "latency, storage, benchmark, footprint, compaction: measure speed and memory",
    )
)


def parse(arguments: list[str]) -> tuple[Any, Callable[[Any], None]]:
    """Parses a command line into settings and the function to call with them."""
    program, (name, *rest) = "python -m experiments", arguments or ["--help"]
    if name in COMMANDS:
        module = importlib.import_module(COMMANDS[name])
        prog, about = f"{program} {name}", inspect.getdoc(module.Settings)
        settings = tyro.cli(module.Settings, prog=prog, description=about, args=rest)
        return settings, module.main
    if name == "sweep":
        from experiments.running import sweep

        program, about, function = f"{program} sweep", sweep.__doc__, sweep.main
        defaults = {name: sweep.Sweep(config) for name, config in IMAGE_TASKS.items()}
    else:
        about = (
            "Trains and prunes a network. Start with `digits`, which needs no data.\n\n"
            f"Other commands, each with --help:\n\n{OTHERS}"
        )
        defaults, function, rest = TASKS, run, arguments
    settings = tyro.extras.overridable_config_cli(
        {name: (HELP[name], default) for name, default in defaults.items()},
        prog=program,
        description=about,
        args=rest,
        config=(tyro.conf.SuppressFixed,),
    )
    return settings, function


def run(config: Config) -> None:
    config.check_effects(TASKS[config.experiment])
    from experiments.running.run import run  # after errors: its imports take seconds

    run(config)


def main(arguments: list[str]) -> None:
    """Runs a command; a user error exits with a message of one line."""
    try:
        settings, function = parse(arguments)
        settings.validate()
        function(settings)
    except BrokenPipeError:  # of `| head`, say
        os._exit(141)  # as a shell reports it
    except (ExperimentError, OSError) as error:  # a folder that cannot be written to
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "interrupted; the same command resumes"
        print(f"\n{message}", file=sys.stderr, flush=True)
        # Exits at once: the threads of XLA cannot be stopped, and would crash Python
        # while it shuts down.
        os._exit(130)


if __name__ == "__main__":
    # Silences the C++ logs of XLA and of the record reader, except for errors.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(sys.argv[1:])
