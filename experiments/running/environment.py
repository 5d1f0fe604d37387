"""What the outcome of a run may depend on besides its configuration."""

import datetime
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Returns hardware, versions, commit and date; to be asked before a run starts."""
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


@functools.cache  # once, for the files may change while a long program runs
def commit() -> str | None:
    """Returns the git commit of this code, or None where there is none to ask.

    It ends in -dirty if code was changed or added since; results and texts do not
    count.
    """
    code = ":/*.py", ":/*.toml"
    try:
        head = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "-dirty" * bool(changes)


def git(*arguments: str) -> str:
    """Returns what git says of this repository."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
