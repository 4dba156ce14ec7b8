"""Charts as SVG: panels of lines or of stacked bars beside each other, with one legend."""

import dataclasses
import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 360, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 62
LEGEND_LINE = 20
COLOURS = ["#0b6e4f", "#3fa34d", "#7a7a7a", "#c8553d", "#2a6fbb", "#8e5bb5", "#d9a404", "#222222",
           "#1aa6b7", "#a0522d"]
FONT = 'font-family="sans-serif" font-size="11" fill="#333"'


@dataclasses.dataclass(frozen=True)
class Panel:
    """A chart; the horizontal positions are those of `labels`, in their order. `series` is
    `{name: [value or None for each label]}`, drawn as lines, or as bars, one on the other."""

    title: str
    labels: list
    series: dict
    y_title: str = ""
    x_title: str = ""
    is_log: bool = False
    is_bars: bool = False


def text(x, y, words, anchor="middle", more=""):
    """Words at a place."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place} {FONT} {more}>{escape(words)}</text>"


def line(points, colour, width=2, dash=""):
    """A line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-dasharray="{dash}"/>')


def short(value):
    """A number on an axis."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def ticks(low, high, is_log):
    """Round numbers from the lowest to the highest, and one beyond."""
    if is_log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return [10 ** power for power in range(first, max(last, first + 1) + 1)]
    step = 10 ** math.floor(math.log10(high or 1))
    while high / step < 4:
        step /= 2
    return [step * number for number in range(math.ceil(high / step) + 1)]


class Scale:
    """Where in a panel a value and a label lie."""

    def __init__(self, panel):
        columns = zip(*panel.series.values())
        if panel.is_bars:
            values = [sum(value or 0 for value in column) for column in columns]
        else:
            values = [value for column in columns for value in column if value]
        self.ticks = ticks(min(values, default=1), max(values, default=1), panel.is_log)
        self.is_log = panel.is_log
        self.count = len(panel.labels)

    def y(self, value):
        """The height of a value."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    def x(self, index):
        """The middle of a label's column."""
        return LEFT + (index + 0.5) * (WIDTH - LEFT - RIGHT) / max(self.count, 1)


def axes(panel, scale):
    """Title, grid, and what the axes say."""
    parts = [text(LEFT, 18, panel.title, "start", 'font-weight="bold"')]
    for tick in scale.ticks:
        y = scale.y(tick)
        parts.append(line([(LEFT, y), (WIDTH - RIGHT, y)], "#ddd", 1))
        parts.append(text(LEFT - 6, y + 4, short(tick), "end"))
    for index, label in enumerate(panel.labels):
        x, y = scale.x(index), HEIGHT - BOTTOM + 15
        turned = f'transform="rotate(-24 {x:.1f} {y:.1f})"' if len(str(label)) > 8 else ""
        parts.append(text(x, y, str(label), "end" if turned else "middle", turned))
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(text(13, middle, panel.y_title, "middle", f'transform="rotate(-90 13 {middle})"'))
    parts.append(text((WIDTH + LEFT) / 2, HEIGHT - BOTTOM + 34, panel.x_title))
    return parts


def lines(panel, scale, colours):
    """A line and its points for each series."""
    parts = []
    for name, values in panel.series.items():
        points = [(scale.x(index), scale.y(value))
                  for index, value in enumerate(values) if value]
        if not points:
            continue
        parts.append(line(points, colours[name], dash="4 3" if name.startswith("goal") else ""))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colours[name]}"/>'
                  for x, y in points]
    return parts


def bars(panel, scale, colours):
    """For each label a bar, of a piece for each series."""
    parts = []
    width = (WIDTH - LEFT - RIGHT) / max(len(panel.labels), 1) * 0.6
    for index in range(len(panel.labels)):
        low = 0
        for name, values in panel.series.items():
            value = values[index] or 0
            top, bottom = scale.y(low + value), scale.y(low)
            parts.append(f'<rect x="{scale.x(index) - width / 2:.1f}" y="{top:.1f}" '
                         f'width="{width:.1f}" height="{bottom - top:.1f}" '
                         f'fill="{colours[name]}"/>')
            low += value
        if low:
            parts.append(text(scale.x(index), scale.y(low) - 4, f"{low:.2f}"))
    return parts


def legend(names, width):
    """Where each name is said, in as many lines as that takes, and how high that is."""
    places, x, y = {}, LEFT, 4
    for name in names:
        length = 28 + round(6.3 * len(name))
        if x + length > width and x > LEFT:
            x, y = LEFT, y + LEGEND_LINE
        places[name] = (x, y)
        x += length
    return places, y + LEGEND_LINE


def figure(panels, columns=3):
    """A whole drawing."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    columns = 2 if len(panels) == 4 else min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    total_width = columns * WIDTH
    places, legend_height = legend(names, total_width)
    total_height = rows * HEIGHT + legend_height
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{total_width}" '
             f'height="{total_height}" viewBox="0 0 {total_width} {total_height}">',
             f'<rect width="{total_width}" height="{total_height}" fill="white"/>']
    for index, panel in enumerate(panels):
        scale = Scale(panel)
        draw = bars if panel.is_bars else lines
        x, y = index % columns * WIDTH, index // columns * HEIGHT
        parts.append(f'<g transform="translate({x} {y})">')
        parts += axes(panel, scale) + draw(panel, scale, colours) + ["</g>"]
    for name, (x, y) in places.items():
        y += rows * HEIGHT
        parts.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colours[name]}"/>')
        parts.append(text(x + 14, y + 9, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"
