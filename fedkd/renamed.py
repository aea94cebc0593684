"""Methods of halves that had other names. Nothing calls the old ones, so a class that overrides one is refused."""

import inspect

from fedkd.errors import ConfigError

NEW_NAMES = {
    "logits": "predictor, which returns a fedkd.models.predictors.Predictor",
    "consult": "precompute",
    "remember": "next_memory",
    "trips": "num_exchanges",
    "asks": "expected_kinds",
    "served": "evaluation_payload",
}
_PARAMETERS = {  # of the old methods, after self
    "logits": ["student", "x", "job"],
    "consult": ["site", "job", "x", "y", "position"],
    "remember": ["trained", "job"],
    "trips": ["round"],
    "asks": ["cohort"],
    "served": ["state", "client"],
}


def refuse_old_names(half: type) -> None:
    """Raises ConfigError for a class written for an older fedkd: it would run, but without what it overrides.

    A method that merely has such a name, with other parameters, is the author's own.
    """
    if old := [name for name in NEW_NAMES if _overrides(getattr(half, name, None), name)]:
        raise ConfigError(
            f"the class {half.__name__} defines {', '.join(old)}, which nothing calls",
            where=half.__module__,
            mend="; ".join(f"instead of {name} override {NEW_NAMES[name]}" for name in old),
        )


def _overrides(method: object, name: str) -> bool:
    return inspect.isfunction(method) and [*inspect.signature(method).parameters][1:] == _PARAMETERS[name]
