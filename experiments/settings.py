"""Settings: fields of dataclasses, with metadata about their values."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

Only = Mapping[str, tuple[str, ...]]  # values of other settings


class ExperimentError(Exception):
    """A user error, reported in one line; any function of this package may raise it."""


def setting(
    default: Any,
    interval: str | None = None,
    *,
    only: Only | tuple[Only, ...] = (),
    dense: bool = True,
    place: bool = False,
) -> Any:
    """Returns the field of a dataclass.

    Its numbers must lie in `interval`, such as "[0, 1)". It has an effect `only` if
    each setting in this dict has one of the given values; of several dicts, one must
    fit. `dense` says whether the dense network of a run depends on it. A `place` says
    where a run computes, reads or writes, and changes results by rounding at most.
    """
    only = only if isinstance(only, tuple) else (only,)
    known = {"interval": interval, "only": only, "place": place}
    known["dense"] = dense and not place
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata=known)
    return dataclasses.field(default=default, metadata=known)


after_dense = functools.partial(setting, dense=False)
place = functools.partial(setting, place=True)


def names(settings: Any, **known: Any) -> set[str]:
    """Returns the names of the fields with all of this metadata."""
    return {
        field.name
        for field in dataclasses.fields(settings)
        if all(field.metadata.get(key) == value for key, value in known.items())
    }


def check_intervals(settings: Any) -> None:
    """Checks all numbers, also in tuples, which must not be empty; None is skipped."""
    for field in dataclasses.fields(settings):
        value, interval = getattr(settings, field.name), field.metadata.get("interval")
        if dataclasses.is_dataclass(value):
            check_intervals(value)
        elif interval and value is not None:
            numbers = value if isinstance(value, tuple) else (value,)
            low, high = map(float, interval[1:-1].split(","))
            sound = bool(numbers) and all(
                (low <= x if interval[0] == "[" else low < x)
                and (x <= high if interval[-1] == "]" else x < high)
                for x in numbers
            )
            check(field.name, value, sound, f"in {interval}")


def has_effect(kind: type, name: str, values: Mapping[str, Any]) -> bool:
    """Whether a setting affects a run, given the values of the others."""
    fields = kind.__dataclass_fields__
    only = fields[name].metadata.get("only") or ({},)
    return any(  # older runs lack some settings
        all(values.get(x, fields[x].default) in some for x, some in those.items())
        for those in only
    )


def preventing(kind: type, name: str, values: Mapping[str, Any]) -> list[str]:
    """Returns the names of the settings whose values leave a setting no effect."""
    found = []
    for only in kind.__dataclass_fields__[name].metadata["only"]:
        found.append([x for x, some in only.items() if values[x] not in some])
    return min(found, key=len)  # of several ways to have an effect, the nearest


def check(name: str, value: object, condition: bool, wanted: str) -> None:
    """Raises an error that names the flag unless `condition` holds."""
    if not condition:
        raise ExperimentError(f"{flag(name)} must be {wanted}; got {value!r}.")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
