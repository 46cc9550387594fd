"""Loss curve of a run, thinned to a few hundred points for any number of steps."""

import math
from typing import Any

MAX_POINTS = 400
"""Points that are kept; more would not change the visible line."""
# Each side of the trend's window is this fraction of the points.
_TREND_SHARE = 30


class LossCurve:
    """Points of a loss curve, each the mean of the same number of steps."""

    def __init__(self) -> None:
        self._sums: list[tuple[int, float, int]] = []  # last step, sum of losses, number
        self._steps_per_point = 1
        self.last: tuple[int, float] | None = None

    def add(self, step: int, loss: float) -> None:
        """Add a step's loss. A run resumed from an earlier step replaces the points after it."""
        if not math.isfinite(loss):
            return
        while self._sums and self._sums[-1][0] >= step:
            self._sums.pop()
        self.last = (step, loss)
        if self._sums and self._sums[-1][2] < self._steps_per_point:
            _, total, number = self._sums[-1]
            self._sums[-1] = (step, total + loss, number + 1)
        else:
            self._sums.append((step, loss, 1))
        if len(self._sums) > MAX_POINTS:
            self._merge_pairs()

    def points(self) -> list[list[float]]:
        """Return step and loss of each point."""
        return [[step, _rounded(total / number)] for step, total, number in self._sums]

    def trend(self) -> list[list[float]]:
        """Return step and weighted mean loss around it, centered to avoid a lag."""
        points = self.points()
        half_width = max(2, len(points) // _TREND_SHARE)
        trend = []
        for middle, (step, _) in enumerate(points):
            first = max(0, middle - half_width)
            window = points[first : middle + half_width + 1]
            weights = [1 + half_width - abs(first + i - middle) for i in range(len(window))]
            total = sum(w * loss for w, (_, loss) in zip(weights, window, strict=True))
            trend.append([step, _rounded(total / sum(weights))])
        return trend

    def _merge_pairs(self) -> None:
        """Merge each two points into one."""
        merged = []
        for first, second in zip(self._sums[::2], [*self._sums[1::2], None], strict=False):
            if second is None:
                merged.append(first)
            else:
                merged.append((second[0], first[1] + second[1], first[2] + second[2]))
        self._sums = merged
        self._steps_per_point *= 2


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


# In the order of the jobs of a comparison; the pattern is for readers who see no colors.
_COLORS = ("var(--accent)", "var(--part-5)", "var(--part-3)", "var(--part-6)")
_PATTERNS = ("solid", "dashed", "dotted", [8, 3, 2, 3])
_LEGEND_LINE = 24
_LINE = {"type": "line", "showSymbol": False, "animation": False, "silent": True}


def loss_chart(curve: LossCurve, *, is_log: bool = False) -> dict[str, Any]:
    """Return a chart of the loss of a job, with its trend."""
    thin = {"width": 1, "color": "var(--part-2)", "opacity": 0.55}
    thick = {"width": 2, "color": "var(--accent)"}
    series = [
        {**_LINE, "name": "loss", "data": curve.points(), "color": "var(--part-2)",
         "lineStyle": thin},
        {**_LINE, "name": "trend", "data": curve.trend(), "color": "var(--accent)",
         "lineStyle": thick},
    ]  # fmt: skip
    return _chart(series, curve.points(), is_log=is_log)


def rate_chart(curve: LossCurve) -> dict[str, Any]:
    """Return a chart of the learning rate of a job."""
    style = {"width": 2, "color": "var(--part-3)"}
    line = {**_LINE, "name": "learning rate", "data": curve.points(), "color": "var(--part-3)"}
    return _chart([{**line, "lineStyle": style}], curve.points())


def comparison_chart(curves: dict[str, LossCurve], *, is_log: bool = False) -> dict[str, Any]:
    """Return a chart of the trends of several jobs, by what the jobs are called."""
    series = []
    for number, (name, curve) in enumerate(curves.items()):
        color = _COLORS[number % len(_COLORS)]
        style = {"width": 2, "color": color, "type": _PATTERNS[number % len(_PATTERNS)]}
        series.append(
            {**_LINE, "name": name, "data": curve.trend(), "color": color, "lineStyle": style}
        )
    longest = max((curve.points() for curve in curves.values()), key=len, default=[])
    # One below the other, and cut off: names of any length fit on a phone.
    text = {"color": "var(--ink)", "fontSize": 13, "width": 240, "overflow": "truncate"}
    legend = {
        "orient": "vertical", "bottom": 0, "itemWidth": 32, "itemStyle": {"opacity": 0},
        "textStyle": text,
    }  # fmt: skip
    options = _chart(series, longest, is_log=is_log)
    grid = {**options["grid"], "bottom": 14 + _LEGEND_LINE * len(curves)}
    return {**options, "legend": legend, "grid": grid}


def _chart(
    series: list[dict[str, Any]], points: list[list[float]], *, is_log: bool = False
) -> dict[str, Any]:
    """Return a chart's options. Its colors are the page's, to follow the light and dark theme."""
    axis = {
        "axisLine": {"lineStyle": {"color": "var(--line)"}},
        "axisTick": {"show": False},
        "axisLabel": {
            "color": "var(--muted)",
            "fontFamily": "Roboto, sans-serif",
            "fontSize": 12,
            "hideOverlap": True,
        },
        "splitLine": {"lineStyle": {"color": "var(--line)"}},
    }
    # Without the first points, the axis starts at the first known step.
    x_min = 0 if not points or points[0][0] <= points[-1][0] / 10 else "dataMin"
    scale = {"type": "log", "logBase": 10} if is_log else {"type": "value"}
    if is_log:
        # What is not positive has no place on the axis.
        series = [{**it, "data": [at for at in it["data"] if at[1] > 0]} for it in series]
    return {
        "animation": False,
        "grid": {"left": 8, "right": 16, "top": 16, "bottom": 4, "containLabel": True},
        "xAxis": {**axis, "type": "value", "min": x_min, "max": "dataMax",
                  "splitLine": {"show": False}},
        "yAxis": {**axis, **scale, "scale": True, "splitNumber": 4, "axisLine": {"show": False}},
        "tooltip": {
            "trigger": "axis", "confine": True, "backgroundColor": "var(--surface)",
            "borderColor": "var(--line)", "textStyle": {"color": "var(--ink)", "fontSize": 13},
        },
        "series": series,
    }  # fmt: skip
