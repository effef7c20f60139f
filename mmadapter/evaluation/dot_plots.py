"""Dot plots as inline SVG: one row a name, one dot a seed, a stroke at their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mmadapter.evaluation.charts import grid_line
from mmadapter.evaluation.scales import Scale, number_text

WIDTH, ROW, TOP, BOTTOM, LEFT, RIGHT = 480, 22, 8, 24, 190, 14


def dot_plot(title: str, rows: Sequence[tuple[str, Mapping[int, float], int]]) -> Markup:
    """A figure of `rows`: (name, value by seed, page colour). Rows without a value stay empty; "" without any value."""
    values = [value for _, by_seed, _ in rows for value in by_seed.values()]
    if not values:
        return Markup("")
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.04 * ((high - low) or 1.0)
    bottom = TOP + ROW * len(rows)
    scale = Scale(low - (room if low < 0 else 0), high + room, LEFT, WIDTH - RIGHT)
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, bottom + BOTTOM, title)]
    for tick in scale.ticks():
        parts.append(vertical_line("axis" if tick == 0 else "grid", scale(tick), TOP, bottom))
        label = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
        parts.append(label.format(scale(tick), bottom + 16, number_text(tick)))
    for number, (name, by_seed, colour) in enumerate(rows):
        parts.append(dots(name, by_seed, colour, scale, TOP + ROW * (number + 0.5)))
    parts.append(Markup("</svg>"))
    caption = Markup('<figcaption><span class="what">{}</span></figcaption>').format(title)
    return Markup('<figure class="chart">{}{}</figure>').format(caption, Markup("").join(parts))


def vertical_line(kind: str, x: float, top: float, bottom: float) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(kind, x, x, top, bottom)


def dots(name: str, by_seed: Mapping[int, float], colour: int, scale: Scale, y: float) -> Markup:
    """One row: its name, its dots with the seed on hover, its mean."""
    text = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
    parts = [text.format(LEFT - 8, y + 4, name), grid_line("grid", LEFT, WIDTH - RIGHT, y, "")]
    dot = Markup('<circle class="dot c{}" cx="{}" cy="{}" r="4"><title>{}, seed {}: {}</title></circle>')
    parts += [
        dot.format(colour, scale(value), y, name, seed, f"{value:.2f}") for seed, value in sorted(by_seed.items())
    ]
    if by_seed:
        mean = scale(sum(by_seed.values()) / len(by_seed))
        parts.append(Markup('<line class="line c{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            colour, mean, mean, y - 7, y + 7
        ))  # fmt: skip
    return Markup("").join(parts)
