"""Pairs of models that differ in one respect, by their tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_MOST_VALUES = 4
"""Tags with more values than that are not split by them."""


class Kind(NamedTuple):
    """What pairs have in common.

    Attributes:
        tag: The key of the tag in which they differ.
        alone: Whether they agree in all other tags that both have.
        source: The source's value; empty for any.
        target: The target's value; empty for any.
    """

    tag: str
    alone: bool
    source: str = ""
    target: str = ""


def pairs_by_tag(tags: Sequence[Mapping[str, str]]) -> dict[Kind, frozenset[tuple[int, int]]]:
    """Returns the ordered pairs of models that differ in each tag, keys rising.

    Those that differ in nothing else are also split by both values, such as float32 to int8, where
    models have at most four of them.

    Args:
        tags: Of each model; a tag that one of a pair lacks says nothing about the pair.
    """
    values: dict[str, set[str]] = {}
    for mine in tags:
        for key, value in mine.items():
            values.setdefault(key, set()).add(value)
    found: dict[Kind, set[tuple[int, int]]] = {}
    for source, mine in enumerate(tags):
        for target, other in enumerate(tags):
            differing = [key for key in mine.keys() & other.keys() if mine[key] != other[key]]
            for key in differing:
                kinds = [Kind(key, alone=False)]
                if len(differing) == 1:
                    kinds.append(Kind(key, alone=True))
                    if len(values[key]) <= _MOST_VALUES:
                        kinds.append(Kind(key, True, mine[key], other[key]))
                for kind in kinds:
                    found.setdefault(kind, set()).add((source, target))
    return {kind: frozenset(found[kind]) for kind in sorted(found)}
