"""Charts as inline SVG: lines over steps, small multiples, a heat map; colours are CSS variables of the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmadapter.evaluation.scales import Point, Scale, finite, nice_step, number_text, thinned

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34


@dataclass(frozen=True)
class Series:
    """One line. `colour` is the number of a page colour (1 to 6); a faint line is background and has no tooltip."""

    name: str
    points: Sequence[Point]
    colour: int = 1
    faint: bool = False
    dots: bool = False
    dashed: bool = False


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, from_zero: bool = False) -> Markup:
    """A chart of lines with a legend (from two series on) and values on hover; empty where there is no point.

    The vertical axis is logarithmic where the values span more than a factor of 30.
    """
    drawn = [
        Series(one.name, thinned(finite(one.points)), one.colour, one.faint, one.dots, one.dashed) for one in series
    ]
    drawn = [one for one in drawn if one.points]
    if not drawn:
        return Markup("")
    x, y = scales_of(drawn, from_zero)
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, y_label)]
    parts += [axes(x, y, x_label), *(line(one, x, y) for one in drawn)]
    parts.append(Markup('<g class="cursor" hidden><line y1="{}" y2="{}"/></g></svg>').format(TOP, HEIGHT - BOTTOM))
    shown = [one for one in drawn if not one.faint]
    legend = legend_of(shown) if len(shown) > 1 else Markup("")
    caption = Markup('<figcaption><span class="what">{}</span>{}</figcaption>').format(y_label, legend)
    return Markup('<figure class="chart" data-chart="{}">{}{}</figure>').format(
        hover_data(shown, x, x_label), caption, Markup("").join(parts)
    )


def scales_of(series: Sequence[Series], from_zero: bool) -> tuple[Scale, Scale]:
    """Both axes' scales, with a little room around the lines that matter."""
    xs = [point[0] for one in series for point in one.points]
    ys = [point[1] for one in series if not one.faint for point in one.points]
    ys = ys or [point[1] for one in series for point in one.points]
    low, high = min(ys), max(ys)
    log = not from_zero and low > 0 and high / low > 30
    if from_zero:
        low = min(0.0, low)
    room = 0 if log else 0.05 * ((high - low) or abs(high) or 1.0)
    bottom = low / 1.15 if log else (low if from_zero else low - room)
    top = high * 1.15 if log else high + room
    start, end = min(xs), max(xs)
    x = Scale(start, end if end > start else start + 1, LEFT, WIDTH - RIGHT)
    return x, Scale(bottom, top, HEIGHT - BOTTOM, TOP, log)


def axes(x: Scale, y: Scale, x_label: str) -> Markup:
    """Recessive grid lines, tick labels, the horizontal axis' name."""
    parts = [grid_line("grid", LEFT, WIDTH - RIGHT, y(tick), number_text(tick)) for tick in y.ticks()]
    for tick in x.ticks():
        label = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
        parts.append(label.format(x(tick), HEIGHT - BOTTOM + 16, number_text(tick)))
    baseline = Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    parts.append(baseline.format(LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM))
    name = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    parts.append(name.format(WIDTH - RIGHT, HEIGHT - 3, x_label))
    return Markup("").join(parts)


def grid_line(kind: str, start: float, end: float, height: float, label: str) -> Markup:
    """A horizontal line with its value on the left."""
    drawn = Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(kind, start, end, height, height)
    text = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    return drawn + text.format(start - 6, height + 4, label)


def line(series: Series, x: Scale, y: Scale) -> Markup:
    """One line, with dots where wanted or where it is a single point."""
    places = [(x(point[0]), min(max(y(point[1]), TOP), HEIGHT - BOTTOM)) for point in series.points]
    path = " ".join(f"{left},{top}" for left, top in places)
    kind = "faint" if series.faint else "dashed" if series.dashed else ""
    drawn = Markup('<polyline class="line c{} {}" points="{}"/>').format(series.colour, kind, path)
    if series.dots or len(places) == 1:
        dot = Markup('<circle class="dot c{}" cx="{}" cy="{}" r="3.5"/>')
        drawn += Markup("").join(dot.format(series.colour, left, top) for left, top in places)
    return drawn


def legend_of(series: Sequence[Series]) -> Markup:
    item = Markup('<span class="key"><i class="c{}"></i>{}</span>')
    items = Markup("").join(item.format(one.colour, one.name) for one in series)
    return Markup('<span class="legend">{}</span>').format(items)


def hover_data(series: Sequence[Series], x: Scale, x_label: str) -> str:
    """What the page's script needs to show values under the pointer, as JSON."""
    lines = [
        {"name": one.name, "colour": one.colour, "points": [[a, float(f"{b:.4g}")] for a, b in one.points]}
        for one in series
    ]
    scale = [x.low, x.high, x.start, x.end]
    return json.dumps({"x": x_label, "scale": scale, "width": WIDTH, "lines": lines}, separators=(",", ":"))


def small_multiples(panels: Sequence[tuple[str, Sequence[Series]]], *, x_label: str) -> Markup:
    """One small chart a panel, all with the same two scales, so that panels can be compared by eye."""
    everything = [one for _, series in panels for one in series if one.points]
    if not everything:
        return Markup("")
    xs = [point[0] for one in everything for point in one.points]
    most = max((abs(point[1]) for one in everything for point in one.points), default=0) or 1.0
    width, height = 200, 104
    x = Scale(min(xs), max(max(xs), min(xs) + 1), 34, width - 4)
    y = Scale(-most * 1.08, most * 1.08, height - 6, 6)
    tick = nice_step(most * 0.6) if nice_step(most * 0.6) <= most else nice_step(most * 0.3)
    figures = []
    for title, series in panels:
        parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, title)]
        grid = [("grid", tick), ("axis", 0), ("grid", -tick)]
        parts += [grid_line(kind, 34, width - 4, y(value), number_text(value)) for kind, value in grid]
        for one in series:
            path = " ".join(f"{x(a)},{y(b)}" for a, b in thinned(one.points, 60))
            parts.append(Markup('<polyline class="line thin c{}" points="{}"/>').format(one.colour, path))
        parts.append(Markup('<g class="cursor" hidden><line y1="6" y2="{}"/></g></svg>').format(height - 6))
        thin = [Series(one.name, thinned(one.points, 60), one.colour) for one in series]
        data = hover_data(thin, x, x_label).replace(f'"width":{WIDTH}', f'"width":{width}')
        figure = '<figure class="chart small" data-chart="{}"><figcaption>{}</figcaption>{}</figure>'
        figures.append(Markup(figure).format(data, title, Markup("").join(parts)))
    return Markup('<div class="multiples">{}</div>').format(Markup("").join(figures))


def heat_map(values: Sequence[Sequence[float]], row_names: Sequence[str], column_name: str) -> Markup:
    """A table of coloured cells around zero: one row a layer, one cell a head; every value on hover."""
    most = max((abs(value) for row in values for value in row), default=0) or 1.0
    rows = []
    for name, row in zip(row_names, values, strict=True):
        cells = Markup("").join(
            Markup('<td style="--share:{}%" class="{}" title="{}"></td>').format(
                round(100 * abs(value) / most),
                "above" if value >= 0 else "below",
                f"{name}, {column_name} {number}: {value:+.4f}",
            )
            for number, value in enumerate(row, start=1)
        )
        rows.append(Markup("<tr><th>{}</th>{}</tr>").format(name, cells))
    legend = Markup(
        "<figcaption>{} from left to right"
        '<span class="key"><i class="swatch below" style="--share:100%"></i>{}</span>'
        '<span class="key"><i class="swatch"></i>0</span>'
        '<span class="key"><i class="swatch above" style="--share:100%"></i>{}</span></figcaption>'
    ).format(f"{column_name}s", f"{-most:.3g}", f"+{most:.3g}")
    return Markup('<figure class="heat"><table>{}</table>{}</figure>').format(Markup("").join(rows), legend)


def bars(rows: Sequence[tuple[str, float | None, int]]) -> Markup:
    """Horizontal bars of percentages: (name, percent, page colour), the value in words at the end of each."""
    items = []
    for name, value, colour in rows:
        shown = "n/a" if value is None else f"{value:.1f}"
        track = Markup('<span class="track"><i class="c{}" style="width:{}%"></i></span>').format(colour, value or 0)
        items.append(Markup('<div class="bar"><span>{}</span>{}<b>{}</b></div>').format(name, track, shown))
    return Markup('<div class="bars">{}</div>').format(Markup("").join(items))


STANDALONE_STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fcfcfb }
.grid { stroke: #e4e3df } .axis { stroke: #b5b4ad } text { fill: #52514e }
.line { fill: none; stroke-width: 2; stroke-linejoin: round } .faint { stroke-width: 1; opacity: .25 }
.c1 { stroke: #2a78d6 } .c2 { stroke: #1baf7a } .c3 { stroke: #c98500 }
.c4 { stroke: #4a3aa7 } .c5 { stroke: #008300 } .c6 { stroke: #e34948 }
"""


def standalone(series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """The same line chart as an SVG file of its own: fixed colours, legend inside."""
    drawn = [
        Series(one.name, thinned(finite(one.points)), one.colour, one.faint) for one in series if finite(one.points)
    ]
    parts = [
        Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}" height="{}">').format(
            WIDTH, HEIGHT, 2 * WIDTH, 2 * HEIGHT
        ),
        Markup("<style>{}</style>").format(Markup(STANDALONE_STYLE)),
    ]
    if drawn:
        x, y = scales_of(drawn, False)
        parts += [axes(x, y, x_label), *(line(one, x, y) for one in drawn)]
        named = [one for one in drawn if not one.faint]
        for number, one in enumerate(named):
            height = TOP + 12 + 16 * number
            item = '<line class="line c{}" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}">{}</text>'
            left = WIDTH - RIGHT - 150
            parts.append(
                Markup(item).format(one.colour, left, left + 18, height, height, left + 24, height + 4, one.name)
            )
    parts.append(Markup('<text x="{}" y="{}">{}</text></svg>').format(LEFT, HEIGHT - 3, y_label))
    return str(Markup("\n").join(parts)) + "\n"
