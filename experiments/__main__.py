"""The command line: one subcommand for each experiment."""

import os
import sys

import tyro

from experiments import digits, lenet5_fashion, lenet300_mnist
from experiments.config import Config, ExperimentError

EXPERIMENTS = (digits, lenet300_mnist, lenet5_fashion)


def parse(arguments: list[str]) -> Config:
    """Returns the settings the command line asks for."""
    return tyro.extras.overridable_config_cli(
        {
            module.CONFIG.experiment: (module.__doc__ or "", module.CONFIG)
            for module in EXPERIMENTS
        },
        prog="python -m experiments",
        description="Trains a network, prunes it, and reports both.",
        args=arguments,
        config=(tyro.conf.SuppressFixed,),
    )


def main(arguments: list[str]) -> None:
    """Runs the command; a mistake of the user's ends it with one line."""
    config = parse(arguments)
    try:
        config.validate()
        # Late, because it takes seconds that neither --help nor a mistake should cost.
        from experiments.run import run

        run(config, command=" ".join(["python -m experiments", *arguments]))
    except ExperimentError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint")
        sys.exit(130)


if __name__ == "__main__":
    # The C++ side of XLA and of the record reader is chatty about its own workings.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(sys.argv[1:])
