"""What the outcome of a run may depend on besides its configuration."""

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Returns hardware, versions, commit and date."""
    packages = ("jax", "flax", "optax", "sparse_optax")
    device = jax.devices()[0]
    return {
        "backend": device.platform,
        "hardware": f"{jax.device_count()} x {device.device_kind} on "
        f"{platform.machine()} with {os.cpu_count()} cores",
        "versions": {name: metadata.version(name) for name in packages},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit() -> str | None:
    """Returns the git commit of this code, or None where there is none to ask.

    It ends in -dirty if there were changes since.
    """
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
