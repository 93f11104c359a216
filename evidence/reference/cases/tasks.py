"""Tasks, scores and losses."""

from __future__ import annotations

from functools import partial
from typing import Any

from evidence.reference.models import MODELS, TOYS, opened, texts
from evidence.reference.names import get
from evidence.reference.results import Cases


def cases() -> Cases:
    """Yield the tasks of every tokenizer, and the scores of both toys on them."""
    for model in MODELS:
        yield f"tasks/{model}/made", partial(made, model)
    for toy in TOYS:
        yield f"tasks/{toy}/measure", partial(measure, toy)
        yield f"tasks/{toy}/losses", partial(losses, toy)
        for name, call in SCORED.items():
            yield f"tasks/{toy}/{name}", partial(scored, toy, name, *call)


def made(model: str) -> dict[str, Any]:
    """One task of each kind."""
    checkpoint = opened(model)
    found = {
        "text": get("tasks.text_task")(checkpoint, texts("prose", 2), name="prose", max_tokens=30),
        "classes": get("tasks.token_classes")(checkpoint, texts("prose", 1)[0], max_tokens=80),
    }
    if model not in TOYS:  # the tiny tokenizer has too few words for recall
        return found
    return found | {
        "mqar": get("tasks.mqar")(checkpoint, pairs=3, count=4, seed=1),
        "needle": get("tasks.needle")(checkpoint, length=40, depth=0.5, count=3),
        "copying": get("tasks.copying")(checkpoint, length=8, count=3),
        "induction": get("tasks.induction")(checkpoint, length=24, count=3),
    }


def measure(toy: str) -> Any:
    """Scores of a toy on all tasks, and their means over texts."""
    found = get("tasks.measure")(opened(toy), [each for name, each in made(toy).items() if name != "classes"])
    score = found["loss"].isel(task=0) if "task" in found["loss"].dims else found["loss"]
    return found, get("stats.over_texts")(score)


def losses(toy: str) -> Any:
    """Losses of tokens by class, and their statistics."""
    read = [*texts("code", 3), *texts("prose", 3)]
    found = get("tasks.losses")(opened(toy), read, labels=["code"] * 3 + ["prose"] * 3, max_tokens=60)
    return found, get("stats.losses")(found), get("stats.losses")(found, by_domain=False)


SCORED: dict[str, tuple[Any, ...]] = {
    "score": ("code", {"max_tokens": 50}),
    "score by block": ("prose", {"max_tokens": 64, "block": 16}),
    "teacher_forced": ("code", {"max_tokens": 50}),
    "teacher_forced shuffled": ("code", {"max_tokens": 50, "shuffled": True, "seed": 1}),
}


def scored(toy: str, name: str, domain: str, options: dict[str, Any]) -> Any:
    """A score of shipped texts."""
    return get(f"tasks.{name.split()[0]}")(opened(toy), texts(domain, 4), **options)
