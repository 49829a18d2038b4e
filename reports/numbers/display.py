"""How numbers are written: one form per quantity, alike in every table, figure and page."""

from __future__ import annotations

from collections.abc import Sequence

from reports.numbers.statistics import Interval, Mean

NOTHING = "–"
"""What stands where there is no number."""


def percent(share: float, digits: int = 2) -> str:
    """
    >>> percent(0.97222)
    '97.22'
    """
    return f"{100 * share:.{digits}f}"


def interval(bounds: Interval | None, *, signed: bool = False) -> str:
    """What follows a number with an interval; the spaces do not break.

    >>> interval(Interval(-0.01, 0.025), signed=True).replace("\u00a0", " ")
    ' [−1.00, +2.50]'
    """
    if bounds is None:
        return ""
    write = points if signed else percent
    return f"\u00a0[{write(bounds.low)},\u00a0{write(bounds.high)}]"


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, always with its sign.

    >>> points(-0.0125), points(0.0)
    ('−1.25', '+0.00')
    """
    return f"{100 * difference + 0.0:+.2f}".replace("-", "−")


def paired(difference: Mean | None) -> str:
    """A paired difference with its interval and number of pairs; without two pairs nothing is written.

    >>> paired(Mean(0.01, 3, Interval(-0.01, 0.03))).replace("\u00a0", " ")
    '+1.00 [−1.00, +3.00], 3 pairs'
    """
    if difference is None or difference.interval is None:
        return NOTHING
    return f"{points(difference.value)}{interval(difference.interval, signed=True)}, {difference.n}\u00a0pairs"


def gbops(bops: float | None) -> str:
    """
    >>> gbops(5_120_000_000), gbops(3_456_789), gbops(None)
    ('5.120', '0.003457', '–')
    """
    return NOTHING if bops is None else f"{bops / 1e9:#.4g}".rstrip(".")


def scaled(number: float, unit: str = "") -> str:
    """
    >>> scaled(1.5e12, "MACs"), scaled(1.5e9), scaled(12)
    ('1.50 TMACs', '1.50 G', '12')
    """
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.2f} {prefix}{unit}"
    return f"{number:g} {unit}".rstrip()


def size(number: float | None) -> str:
    """
    >>> size(2_097_152), size(3_072)
    ('2.00 MiB', '3.00 KiB')
    """
    if number is None:
        return NOTHING
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= factor:
            return f"{number / factor:.2f} {unit}"
    return f"{number:g} B"


def duration(seconds: float | None) -> str:
    """
    >>> duration(3.14159), duration(75), duration(7_500)
    ('3.1 s', '1 min 15 s', '2 h 05 min')
    """
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def epochs(number: float | None) -> str:
    return NOTHING if number is None else f"{number:.2f}"


def count(number: int, noun: str, plural: str = "") -> str:
    """
    >>> count(1, "seed"), count(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listing(words: Sequence[str]) -> str:
    """
    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def unbroken(text: str) -> str:
    """Text that a narrow column may not break."""
    return text.replace(" ", "\u00a0")
