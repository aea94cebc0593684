"""Renamed: methods of halves that had other names. Nothing calls the old ones, so a class that has one is refused."""

from fedkd.errors import ConfigError

NEW_NAMES = {
    "logits": "predictor, which returns a fedkd.models.predictors.Predictor",
    "consult": "precompute",
    "remember": "next_memory",
    "trips": "num_exchanges",
    "asks": "expected_kinds",
    "served": "evaluation_payload",
}


def refuse_old_names(half: type) -> None:
    """Raises ConfigError for a class written for an older fedkd: it would run, but without what it overrides."""
    if old := [name for name in NEW_NAMES if hasattr(half, name)]:
        raise ConfigError(
            f"the class {half.__name__} defines {', '.join(old)}, which nothing calls",
            where=half.__module__,
            mend="; ".join(f"instead of {name} override {NEW_NAMES[name]}" for name in old),
        )
