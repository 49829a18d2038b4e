"""YAML as suites and `--set` have it, from anybody: small once it is expanded, and without doubled keys."""

from __future__ import annotations

from typing import Any

import yaml

from benchmarks.messages import explain_yaml

MOST_VALUES = 100_000
"""Values of a text with every alias written out; shipped suites have two hundred."""


class YamlError(ValueError):
    """A text that is no YAML, or is not read here; the message says where and why in one line."""


def read_yaml(text: str) -> Any:
    """What a text holds. Raises YamlError.

    >>> read_yaml("seeds: [0, 1]")
    {'seeds': [0, 1]}
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # the last of a number of thousands of digits
        raise YamlError(explain_yaml(error)) from None
    except (LookupError, AttributeError, TypeError) as error:  # yaml's own, of values that do not fit their tags
        raise YamlError(f"a value does not fit its tag ({type(error).__name__}: {explain_yaml(error)})") from None


class _Loader(yaml.SafeLoader):
    """Refuses what grows when its aliases are written out, and a key that stands twice in one mapping."""

    def compose_document(self) -> Any:
        node: Any = super().compose_document()
        if _size(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"it has more than {MOST_VALUES:,} values, its aliases written out")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Of a doubled key's values the last alone would count."""
        seen = set[str]()
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is there already", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _size(node: Any, known: dict[int, int | None]) -> int:
    """Values in a node, those behind aliases as often as they are named; each node is looked at once."""
    if isinstance(node, tuple):  # a key and its value
        return sum(_size(part, known) for part in node)
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None
        known[id(node)] = 1 + sum(_size(part, known) for part in node.value)
    size = known[id(node)]
    if size is None:
        raise yaml.MarkedYAMLError(problem="an alias stands in what it names", problem_mark=node.start_mark)
    return size
