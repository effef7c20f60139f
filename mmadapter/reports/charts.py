"""Charts as inline SVG: lines, dots, small multiples, a heat map of gates.

Colours are the CSS variables c0 to c6 of the page: charts follow its light and dark theme, offline, without a library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from mmadapter.terminal import number_text

Point = tuple[float, float]
Tick = tuple[float, str]
WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34
MOST_POINTS = 300
SMALL_WIDTH, SMALL_HEIGHT, SMALL_LEFT, SMALL_POINTS = 200, 104, 34, 60
CURSOR = Markup('<g class="cursor" hidden><line y1="{}" y2="{}"/></g>')  # the line under the pointer


@dataclass(frozen=True)
class Scale:
    """Data values to picture coordinates, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        place = math.log10 if self.log else float
        low, high = place(self.low), place(self.high)
        share = (place(max(value, self.low) if self.log else value) - low) / ((high - low) or 1.0)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the scale; logarithmic: 1, 2, 5 times powers of ten, over three decades powers alone."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if math.log10(self.high / self.low) <= 3 else (1,)
            ticks = [factor * 10.0**decade for decade in decades for factor in factors]
            return [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]
        step = round_step((self.high - self.low) / count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class Series:
    """One line. `colour` is the number of a page colour; a faint line is background and has no tooltip."""

    name: str
    points: Sequence[Point]
    colour: int = 1
    faint: bool = False
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """One dot, its text on hover."""

    x: float
    y: float
    text: str
    colour: int = 1
    radius: float = 4


# ---- numbers


def round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The average over up to 21 points around each one (those that exist at both ends): it does not lag behind."""
    reach = min(21, 1 + len(points) // 10) // 2
    around = (points[max(0, place - reach) : place + reach + 1] for place in range(len(points)))
    return [(x, math.fsum(y for _, y in near) / len(near)) for (x, _), near in zip(points, around, strict=True)]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points, the last one included."""
    kept = list(points[:: max(1, math.ceil(len(points) / most))])
    return kept if kept[-1:] == points[-1:] else [*kept, points[-1]]


def finite(points: Iterable[tuple[float, float | None]]) -> list[Point]:
    """The points without those that have no number (null, NaN, infinite)."""
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


# ---- parts of a drawing


def joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def svg(width: float, height: float, label: str, parts: Iterable[Markup], widest: float | None = None) -> Markup:
    """A drawing that fills its column, up to `widest` pixels; `label` is for screen readers."""
    limit = "" if widest is None else Markup(' style="max-width:{:.0f}px"').format(widest)
    opened = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"{}>').format(width, height, label, limit)
    return opened + joined(parts) + Markup("</svg>")


def rule(kind: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    """A straight line; `kind`: grid, axis, line c1, ..."""
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(kind, x1, x2, y1, y2)


def tick_text(x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    return Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def row_rule(kind: str, left: float, right: float, y: float, text: str) -> Markup:
    """A horizontal line, its value at the left."""
    return rule(kind, left, right, y, y) + tick_text(left - 6, y + 4, text, "end")


def path(points: Iterable[Point], kind: str) -> Markup:
    """A line through places in the drawing."""
    places = " ".join(f"{x},{y}" for x, y in points)
    return Markup('<polyline class="line {}" points="{}"/>').format(kind, places)


def axes(y: Scale, x_ticks: Iterable[Tick], x_label: str = "") -> Markup:
    """Recessive grid lines, tick labels (`x_ticks`: place in the drawing, text), the horizontal axis and its name."""
    parts = [row_rule("grid", LEFT, WIDTH - RIGHT, y(tick), number_text(tick)) for tick in y.ticks()]
    parts += [tick_text(place, HEIGHT - BOTTOM + 16, text) for place, text in x_ticks]
    parts.append(rule("axis", LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM))
    if x_label:
        parts.append(tick_text(WIDTH - RIGHT, HEIGHT - 3, x_label, "end"))
    return joined(parts)


def figure(caption: Markup, drawing: Markup, hover: str = "", kind: str = "chart") -> Markup:
    """A drawing under its caption; `hover`: what the page's script needs to show values under the pointer."""
    data = Markup(' data-chart="{}"').format(hover) if hover else ""
    return Markup('<figure class="{}"{}><figcaption>{}</figcaption>{}</figure>').format(kind, data, caption, drawing)


def hover_data(series: Sequence[Series], x: Scale, x_label: str, width: int) -> str:
    """The points of the lines as JSON."""
    lines = [
        {"name": one.name, "colour": one.colour, "points": [[a, float(f"{b:.4g}")] for a, b in one.points]}
        for one in series
    ]
    scale = [x.low, x.high, x.start, x.end]
    return json.dumps({"x": x_label, "scale": scale, "width": width, "lines": lines}, separators=(",", ":"))


# ---- charts


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, from_zero: bool = False) -> Markup:
    """Lines with a legend (from two series on) and values on hover; empty where there is no point.

    The vertical axis is logarithmic where the values span more than a factor of 30.
    """
    drawn = [replace(one, points=thinned(points, MOST_POINTS)) for one in series if (points := finite(one.points))]
    if not drawn:
        return Markup("")
    shown = [one for one in drawn if not one.faint]

    # Both axes' scales, with a little room around the lines that matter.
    xs = [place for one in drawn for place, _ in one.points]
    ys = [value for one in shown or drawn for _, value in one.points]
    low, high = min(ys), max(ys)
    log = not from_zero and low > 0 and high / low > 30
    if from_zero:
        low = min(0.0, low)
    room = 0.05 * ((high - low) or abs(high) or 1.0)
    bottom, top = (low / 1.15, high * 1.15) if log else (low if from_zero else low - room, high + room)
    x = Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - RIGHT)
    y = Scale(bottom, top, HEIGHT - BOTTOM, TOP, log)

    # The lines, with dots where wanted or where one is a single point.
    parts = [axes(y, [(x(tick), number_text(tick)) for tick in x.ticks()], x_label)]
    dot = Markup('<circle class="dot c{}" cx="{}" cy="{}" r="3.5"/>')
    for one in drawn:
        places = [(x(place), min(max(y(value), TOP), HEIGHT - BOTTOM)) for place, value in one.points]
        parts.append(path(places, f"c{one.colour}{' faint' if one.faint else ' dashed' if one.dashed else ''}"))
        parts += [dot.format(one.colour, *place) for place in places if one.dots or len(places) == 1]
    drawing = svg(WIDTH, HEIGHT, y_label, [*parts, CURSOR.format(TOP, HEIGHT - BOTTOM)])

    caption = Markup('<span class="what">{}</span>').format(y_label)
    if len(shown) > 1:
        key = Markup('<span class="key"><i class="c{}"></i>{}</span>')
        caption += Markup('<span class="legend">{}</span>').format(
            joined(key.format(one.colour, one.name) for one in shown)
        )
    return figure(caption, drawing, hover_data(shown, x, x_label, WIDTH))


def dot_chart(
    what: str, against: str, dots: Sequence[Dot], x: Scale, x_ticks: Sequence[Tick], line: Sequence[Point] = ()
) -> Markup:
    """Dots over a grid, and a line through some points; `x_ticks`: value, text."""
    values = [dot.y for dot in dots]
    room = 0.08 * ((max(values) - min(values)) or abs(max(values))) or 1.0
    bottom = max(0.0, min(values) - room) if min(values) >= 0 else min(values) - room  # no score is below nothing
    y = Scale(bottom, max(values) + room, HEIGHT - BOTTOM, TOP)
    parts = [axes(y, [(x(place), text) for place, text in x_ticks])]
    parts += [path([(x(a), y(b)) for a, b in line], "c1 thin")] if line else []
    circle = Markup('<circle class="dot c{}" cx="{}" cy="{}" r="{}"><title>{}: {}</title></circle>')
    parts += [circle.format(one.colour, x(one.x), y(one.y), one.radius, one.text, number_text(one.y)) for one in dots]
    caption = Markup('<span class="what">{}</span><span class="path">{}</span>').format(what, against)
    return figure(caption, svg(WIDTH, HEIGHT, f"{what} {against}", parts))


def small_multiples(panels: Sequence[tuple[str, Sequence[Series]]], *, x_label: str) -> Markup:
    """One small chart a panel, all with the same two scales around zero, so that panels can be compared by eye."""
    points = [point for _, series in panels for one in series for point in one.points]
    if not points:
        return Markup("")
    xs, most = [x for x, _ in points], max(abs(y) for _, y in points) or 1.0
    right = SMALL_WIDTH - 4
    x = Scale(min(xs), max(max(xs), min(xs) + 1), SMALL_LEFT, right)
    y = Scale(-most * 1.08, most * 1.08, SMALL_HEIGHT - 6, 6)
    tick = round_step(most * 0.6) if round_step(most * 0.6) <= most else round_step(most * 0.3)
    grid = [("grid", tick), ("axis", 0), ("grid", -tick)]
    rules = [row_rule(kind, SMALL_LEFT, right, y(value), number_text(value)) for kind, value in grid]
    figures = []
    for title, series in panels:
        drawn = [replace(one, points=thinned(one.points, SMALL_POINTS)) for one in series]
        lines = [path([(x(a), y(b)) for a, b in one.points], f"thin c{one.colour}") for one in drawn]
        drawing = svg(SMALL_WIDTH, SMALL_HEIGHT, title, [*rules, *lines, CURSOR.format(6, SMALL_HEIGHT - 6)])
        figures.append(figure(Markup.escape(title), drawing, hover_data(drawn, x, x_label, SMALL_WIDTH), "chart small"))
    return Markup('<div class="multiples">{}</div>').format(joined(figures))


def heat_map(what: str, values: Sequence[Sequence[float | None]], row_names: Sequence[str], column_name: str) -> Markup:
    """Coloured squares around zero: one row a layer, one square a head or token; every value on hover."""
    known = [[value if value is not None and math.isfinite(value) else 0.0 for value in row] for row in values]
    lowest, most = (function((value for row in known for value in row), default=0.0) for function in (min, max))
    most = max(abs(lowest), most) or 1.0
    columns = max(map(len, known), default=0) or 1
    width = min(46.0, (WIDTH - LEFT - RIGHT) / columns)
    cell = Markup(
        '<rect class="{}" x="{}" y="{}" width="{}" height="18" rx="2" fill-opacity="{}"><title>{}, {} {}: {}'
        "</title></rect>"
    )
    parts = []
    for line, (name, row) in enumerate(zip(row_names, known, strict=True)):
        parts.append(tick_text(LEFT - 6, 20 * line + 13, name, "end"))
        for number, (value, given) in enumerate(zip(row, values[line], strict=True)):
            kind, share = "above" if value >= 0 else "below", round(abs(value) / most, 3)
            place = round(LEFT + width * number, 2), 20 * line, round(width - 2, 2)
            text = f"{value:+.4f}" if value == given else "not finite"
            parts.append(cell.format(kind, *place, share, name, column_name, number + 1, text))
    swatch = Markup('<span class="key"><i class="swatch {}"></i>{}</span>')
    ends = [("below", f"{-most:.3g}")] if lowest < 0 else []
    caption = Markup('<span class="what">{}</span><span>{}s from left to right</span>').format(what, column_name)
    caption += joined(swatch.format(*end) for end in [*ends, ("", "0"), ("above", f"+{most:.3g}")])
    right = max(round(LEFT + width * columns), 200)
    drawing = svg(right, 20 * len(known), what, parts, widest=1.33 * right)  # letters as large as in other charts
    return figure(caption, drawing, kind="chart heat")
