"""From values to places in a chart: scales with round ticks, smoothing, thinning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
MOST_POINTS = 300


@dataclass(frozen=True)
class Scale:
    """Data values to picture coordinates, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._of(self.low), self._of(self.high)
        share = (self._of(max(value, self.low) if self.log else value) - low) / ((high - low) or 1.0)
        return round(self.start + share * (self.end - self.start), 2)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the scale."""
        if self.log:
            return log_ticks(self.low, self.high)
        step = nice_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def nice_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten; only powers of ten over more than three decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) <= 3 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def number_text(value: float) -> str:
    """A short number: 1,200, 0.05, 2e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"


def smoothed(points: Sequence[Point], window: int = 21) -> list[Point]:
    """The average over `window` points around each one (those that exist at both ends): it does not lag behind."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    reach = min(window, 1 + len(points) // 10) // 2
    found = []
    for place, (x, _) in enumerate(points):
        start, end = max(0, place - reach), min(len(points), place + reach + 1)
        found.append((x, (sums[end] - sums[start]) / (end - start)))
    return found


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points, the last one included."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]
