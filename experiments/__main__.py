"""The command line: one subcommand for each experiment."""

import os
import shlex
import sys

import tyro

from experiments.config import Config, ExperimentError
from experiments.cost.settings import Benchmark, Footprint, Latency, Storage
from experiments.frontiers.settings import Frontiers
from experiments.running import grid
from experiments.running.grid import Sweep
from experiments.running.settings import Export
from experiments.study.settings import Study
from experiments.tasks import DEFAULTS, IMAGE_TASKS, TASKS

Measurement = Benchmark | Footprint | Latency | Storage | Export
Settings = Config | Sweep | Study | Frontiers | Measurement


def parse(arguments: list[str]) -> Settings:
    """Returns the settings of the run or the sweep that the command line asks for."""
    command = "python -m experiments"
    for name, settings in (
        ("benchmark", Benchmark),
        ("footprint", Footprint),
        ("latency", Latency),
        ("storage", Storage),
        ("export", Export),
        ("sweep study", Study),
        ("sweep frontiers", Frontiers),
    ):
        words = name.split()
        if arguments[: len(words)] == words:
            return tyro.cli(
                settings,
                prog=f"{command} {name}",
                description=settings.__doc__,
                args=arguments[len(words) :],
            )
    if arguments[:1] == ["sweep"]:
        return tyro.extras.overridable_config_cli(
            {
                module.CONFIG.experiment: (module.__doc__ or "", Sweep(module.CONFIG))
                for module in IMAGE_TASKS
            },
            prog=f"{command} sweep",
            description=grid.__doc__,
            args=arguments[1:],
            config=(tyro.conf.SuppressFixed,),
        )
    return tyro.extras.overridable_config_cli(
        {
            module.CONFIG.experiment: (module.__doc__ or "", module.CONFIG)
            for module in TASKS
        },
        prog=command,
        description="Trains a network, prunes it, and reports both. "
        f"`{command} sweep --help` tells how to make many such runs at once, "
        f"`{command} benchmark --help` how to measure what the method costs, "
        f"`{command} footprint --help` how to tell what it would take of many devices, "
        f"`{command} export --help` how to store the network of a run as a sparse "
        "file, and `storage` and `latency` measure how small and how fast that is.",
        args=arguments,
        config=(tyro.conf.SuppressFixed,),
    )


def main(arguments: list[str]) -> None:
    """Runs the command; a mistake of the user's ends it with one line."""
    settings = parse(arguments)
    command = shlex.join([sys.executable, "-m", "experiments", *arguments])
    try:
        settings.validate()
        if isinstance(settings, Config):
            settings.check_parts(DEFAULTS[settings.experiment])
        # Late, because it takes seconds that neither --help nor a mistake should cost.
        from experiments.running.environment import commit

        commit()  # is remembered: the code may change while it runs
        if isinstance(settings, Sweep):
            from experiments.running.sweep import sweep

            sweep(settings, command)
        elif isinstance(settings, Study):
            from experiments.study.make import study

            study(settings, command)
        elif isinstance(settings, Frontiers):
            from experiments.frontiers.make import frontiers

            frontiers(settings, command)
        elif isinstance(settings, Benchmark):
            from experiments.cost.benchmark import benchmark

            benchmark(settings)
        elif isinstance(settings, Footprint):
            from experiments.cost.footprint import footprint

            footprint(settings)
        elif isinstance(settings, Latency):
            from experiments.cost.latency import latency

            latency(settings)
        elif isinstance(settings, Storage):
            from experiments.cost.storage import storage

            storage(settings)
        elif isinstance(settings, Export):
            from experiments.running.export import export

            export(settings)
        else:
            from experiments.running.run import run

            run(settings, command)
    except (ExperimentError, OSError) as error:  # a folder that cannot be written to
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"\ninterrupted; {going_on(settings)}", file=sys.stderr, flush=True)
        # At once: what XLA and Orbax still compute in their threads cannot be stopped,
        # and would crash a Python that shuts down around them.
        os._exit(130)


def going_on(settings: Settings) -> str:
    """Returns what becomes of work that was interrupted."""
    if isinstance(settings, Measurement):
        return "the same command starts again"
    if isinstance(settings, Config):
        rounds = settings.checkpoint_every
        return (
            "the same command goes on from the last checkpoint, if there is one: they "
            f"are {rounds} rounds apart"
        )
    return "the same command goes on after the last run that was finished"


if __name__ == "__main__":
    # The C++ side of XLA and of the record reader is chatty about its own workings.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(sys.argv[1:])
