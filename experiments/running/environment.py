"""What the results of a run may depend on besides its settings."""

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
    """Returns hardware, software, commit and date; call it when a run starts."""
    packages = ("jax", "jaxlib", "numpy", "flax", "optax", "sparse_optax")
    device = jax.devices()[0]
    return {
        "backend": device.platform,
        "hardware": f"{jax.device_count()} x {device.device_kind} on "
        f"{platform.machine()} with {os.cpu_count()} cores{processor()}",
        "versions": {name: metadata.version(name) for name in packages},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Returns the model of the CPU, where Linux names it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return f", {names[0]}" if names else ""


@functools.cache  # the files may change while a long program runs
def commit() -> str | None:
    """Returns the git commit of this code, or None if there is none.

    It ends in -dirty if Python or TOML files have been changed or added since.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    run = functools.partial(subprocess.check_output, stderr=subprocess.DEVNULL)
    try:
        head = run([*git, "rev-parse", "HEAD"], text=True).strip()
        changes = run([*git, "status", "--porcelain", "--", ":/*.py", ":/*.toml"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "-dirty" * bool(changes)
