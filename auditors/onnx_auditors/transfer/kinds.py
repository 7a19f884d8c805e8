"""Pairs of models that differ in one respect, by their tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Key = tuple[str, bool]
"""A tag, and whether the pair agrees in all other tags that both have."""


def pairs_by_tag(tags: Sequence[Mapping[str, str]]) -> dict[Key, frozenset[tuple[int, int]]]:
    """Returns the ordered pairs of models that differ in each tag, keys rising.

    Args:
        tags: Of each model; a tag that one of a pair lacks says nothing about the pair.
    """
    found: dict[Key, set[tuple[int, int]]] = {}
    for source, mine in enumerate(tags):
        for target, other in enumerate(tags):
            differing = [key for key in mine.keys() & other.keys() if mine[key] != other[key]]
            for key in differing:
                found.setdefault((key, False), set()).add((source, target))
                if len(differing) == 1:
                    found.setdefault((key, True), set()).add((source, target))
    return {key: frozenset(found[key]) for key in sorted(found)}
