"""Rows of the control study, by hand."""


def runs(kept, **rest):
    """Returns rows of a comparison, seed by seed."""
    row = {
        **{"task": "digits", "stage": "comparison", "trial": "leaf", "control": "none"},
        **{"strength": 0.1, "scale": 1.0, "total": 1_000},
        **{"commit": "abc", "hardware": "1 x cpu"},
        **{"test_accuracy": 0.9, "dense_test_accuracy": 0.95, "validation_bound": 0.9},
    }
    return [
        {**row, "seed": seed, "kept": count, **rest} for seed, count in enumerate(kept)
    ]


FORM, OTHER = [50, 80, 20, 40, 60, 33, 47], [70, 90, 35, 50, 66, 31, 52]
BETTER = [40, 70, 15, 33, 50, 30, 40]
BEST = [39, 69, 14, 32, 49, 29, 39]


def tuning(trial, *settings):
    """Returns rows of a tuning: strength, scale, and what is kept on seeds 0 and 1."""
    return [
        {**row, "stage": "tuning", "strength": strength, "scale": scale}
        for strength, scale, *kept in settings
        for row in runs(kept, trial=trial)
    ]
