"""A policy says which bits each layer gets: layer name -> (weight bits, activation bits)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from methods.quantization.grid import MAX_BITS

SCHEMA = 1


class PolicyError(ValueError):
    """A policy that cannot be read, or that does not fit the network."""


class LayerBits(NamedTuple):
    """Bits of one layer's weights and of its input activations."""

    weight: int
    activation: int


Candidates = Mapping[str, Sequence[LayerBits]]
"""Searchable layer -> the bits it may get."""


class Policy(Mapping[str, LayerBits]):
    """Bits of layers by name, in graph order; immutable, hashable, reads and writes JSON.

    >>> policy = Policy({"conv": (4, 3)})
    >>> policy["conv"].activation, Policy.from_json(policy.to_json()) == policy
    (3, True)
    """

    def __init__(self, layers: Mapping[str, tuple[int, int]]) -> None:
        self._layers = {name: _bits(name, pair) for name, pair in layers.items()}

    def __getitem__(self, layer: str) -> LayerBits:
        return self._layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._layers.items())))

    def __repr__(self) -> str:
        return f"Policy({ {name: tuple(bits) for name, bits in self._layers.items()} })"

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "layers": {name: list(bits) for name, bits in self._layers.items()}}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_dict(cls, data: Any) -> Policy:
        """Raises PolicyError unless `data` has this schema and every layer maps to [weight bits, activation bits]."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("layers"), dict):
            raise PolicyError(
                f'not a policy: expected {{"schema": {SCHEMA}, "layers": {{name: [weight, activation]}}}}'
            )
        return cls(data["layers"])

    @classmethod
    def from_json(cls, text: str) -> Policy:
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise PolicyError(f"not a policy: {error}") from error

    @classmethod
    def read(cls, path: Path) -> Policy:
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PolicyError(f"cannot read the policy {path}: {error.strerror}") from error
        except (PolicyError, UnicodeDecodeError) as error:
            raise PolicyError(f"{path}: {error}") from error


def _bits(name: str, pair: Any) -> LayerBits:
    valid = isinstance(pair, (list, tuple)) and len(pair) == 2
    if not valid or not all(type(bits) is int and 1 <= bits <= MAX_BITS for bits in pair):
        raise PolicyError(f"layer {name!r}: bits must be two integers in 1..{MAX_BITS}, got {pair!r}")
    return LayerBits(*pair)
