"""Runs as an SVG picture: what each backend did, and when.

A panel for each run, all with the same time axis; a row for each backend. A colour is a model, hatching its loading.
Jobs of one model that follow each other are one bar, and what is too short to be seen is gathered in grey, so that the
picture of ten thousand jobs can still be opened.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from comfyproxy.planning.engine import Record, Run

_WIDTH, _LEFT, _RIGHT = 1400, 130, 20
_ROW, _BAR, _TITLE, _AXIS, _LEGEND = 24, 18, 30, 30, 20
_LEGEND_WIDTH = 230
_TICKS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600, 24 * 3600, 7 * 24 * 3600)
_MAX_TICKS = 12
_GREY = "#9a9a9a"


@dataclass(slots=True)
class _Bar:
    begin_s: float
    end_s: float
    model: str
    is_load: bool
    jobs: int
    is_mixed: bool = False


def draw(runs: Mapping[str, Run]) -> str:
    """Return the picture of at least one run, by the titles of the panels."""
    until_s = max(record.end_s for run in runs.values() for record in run.records)
    models = sorted({record.job.model for run in runs.values() for record in run.records})
    return "\n".join(_Picture(runs, until_s, models).lines()) + "\n"


class _Picture:
    def __init__(self, runs: Mapping[str, Run], until_s: float, models: Sequence[str]) -> None:
        self._runs, self._until_s, self._models = runs, until_s, models
        self._places = {model: place for place, model in enumerate(models)}
        self._scale = (_WIDTH - _LEFT - _RIGHT) / until_s

    def lines(self) -> Iterator[str]:
        columns = max(1, (_WIDTH - _LEFT - _RIGHT) // _LEGEND_WIDTH)
        legend_rows = math.ceil((len(self._models) + 1) / columns)
        heights = [_TITLE + _ROW * len(run.fleet.backends) + _AXIS for run in self._runs.values()]
        height = sum(heights) + _LEGEND * legend_rows + 20
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#222">'
        )
        yield "<defs>"
        for place in range(len(self._models)):
            yield (
                f'<pattern id="load-{place}" width="6" height="6" patternUnits="userSpaceOnUse" '
                f'patternTransform="rotate(45)"><rect width="6" height="6" fill="{self._colour(place)}"/>'
                '<rect width="3" height="6" fill="#000" fill-opacity="0.55"/></pattern>'
            )
        yield "</defs>"
        yield f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
        top = 0
        for (title, run), high in zip(self._runs.items(), heights, strict=True):
            yield from self._panel(title, run, top)
            top += high
        yield from self._legend(top + 10, columns)
        yield "</svg>"

    def _panel(self, title: str, run: Run, top: int) -> Iterator[str]:
        yield f'<text x="{_LEFT}" y="{top + 20}" font-size="15" font-weight="bold">{_text(title)}</text>'
        top += _TITLE
        bottom = top + _ROW * len(run.fleet.backends)
        step = next((tick for tick in _TICKS_S if self._until_s / tick <= _MAX_TICKS), _TICKS_S[-1])
        for tick in range(int(self._until_s // step) + 1):
            x = self._x(tick * step)
            yield f'<path d="M{x} {top}V{bottom + 4}" stroke="#ddd"/>'
            yield f'<text x="{x}" y="{bottom + 17}" text-anchor="middle" fill="#555">{clock(tick * step)}</text>'
        for row, (backend, records) in enumerate(run.timelines.items()):
            y = top + row * _ROW
            yield f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{_text(_shortened(backend, 18))}</text>'
            for bar in _bars(records, 1 / self._scale):
                yield self._bar(bar, y)

    def _bar(self, bar: _Bar, y: int) -> str:
        x = self._x(bar.begin_s)
        width = max(round(self._x(bar.end_s) - x, 1), 0.3)
        place = self._places[bar.model]
        model = bar.model or "no model"
        if bar.is_mixed:
            fill, what = _GREY, "several models"
        elif bar.is_load:
            fill, what = f"url(#load-{place})", f"loads {model}"
        else:
            fill, what = self._colour(place), f"{model}, {bar.jobs} job{'s' if bar.jobs != 1 else ''}"
        told = f"{what}, {clock(bar.begin_s)} to {clock(bar.end_s)}"
        return (
            f'<rect x="{x}" y="{y}" width="{width}" height="{_BAR}" fill="{fill}"><title>{_text(told)}</title></rect>'
        )

    def _legend(self, top: int, columns: int) -> Iterator[str]:
        entries = [(self._colour(place), model or "no model") for place, model in enumerate(self._models)]
        entries.append(("url(#load-0)", "hatched: loads the model"))
        for place, (fill, told) in enumerate(entries):
            x = _LEFT + place % columns * _LEGEND_WIDTH
            y = top + place // columns * _LEGEND
            yield f'<rect x="{x}" y="{y}" width="14" height="14" fill={quoteattr(fill)}/>'
            yield f'<text x="{x + 20}" y="{y + 12}">{_text(_shortened(told, 30))}</text>'

    def _colour(self, place: int) -> str:
        if not self._models[place]:
            return "#cfcfcf"
        # Beyond eight hues, shades can be told apart better than further hues.
        count = len(self._models)
        hues = max(min(count, 8), math.ceil(count / 3))
        return f"hsl({360 * (place % hues) / hues:.0f},65%,{(50, 74, 32)[place // hues]}%)"

    def _x(self, at_s: float) -> float:
        return round(_LEFT + at_s * self._scale, 1)


def _bars(records: Sequence[Record], pixel_s: float) -> list[_Bar]:
    """Return what is to be drawn in a row; `pixel_s` is how many seconds are as wide as a pixel."""
    bars: list[_Bar] = []
    for record in records:
        run_from_s = record.start_s + record.load_s
        if record.load_s:
            _add(bars, _Bar(record.start_s, run_from_s, record.job.model, True, 0), pixel_s)
        _add(bars, _Bar(run_from_s, record.end_s, record.job.model, False, 1), pixel_s)
    return bars


def _add(bars: list[_Bar], new: _Bar, pixel_s: float) -> None:
    last = bars[-1] if bars else None
    if last is not None and new.begin_s - last.end_s < pixel_s / 2:
        is_same = (last.model, last.is_load) == (new.model, new.is_load) and not last.is_mixed
        if is_same or new.end_s - last.begin_s < pixel_s:
            last.end_s, last.jobs, last.is_mixed = new.end_s, last.jobs + new.jobs, not is_same
            return
    bars.append(new)


def clock(seconds: float) -> str:
    """Return a time as people say it: 1:05:00, 3:20."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _text(text: str) -> str:
    # XML has no way to write control characters and lone surrogates.
    return escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))
