"""The loss of a run as a line: thinned, so that any number of steps is a few hundred points."""

import math
from typing import Any

# Points that are kept; twice as many make no line that anybody could tell apart.
MOST_POINTS = 400
# The trend looks at as large a part of the line to either side.
_TREND_SHARE = 30


class LossCurve:
    """The points of a loss curve, each the mean of as many steps as needed."""

    def __init__(self) -> None:
        self._sums: list[tuple[int, float, int]] = []  # last step, sum of losses, how many
        self._each = 1
        self._smooth: float | None = None
        self.last: tuple[int, float] | None = None

    def add(self, step: int, loss: float) -> None:
        """Add a step's loss. A run that goes on from an earlier step replaces what came after."""
        if not math.isfinite(loss):
            return
        while self._sums and self._sums[-1][0] >= step:
            self._sums.pop()
        self.last = (step, loss)
        if self._sums and self._sums[-1][2] < self._each:
            _, total, number = self._sums[-1]
            self._sums[-1] = (step, total + loss, number + 1)
        else:
            self._sums.append((step, loss, 1))
        if len(self._sums) > MOST_POINTS:
            self._halve()

    def points(self) -> list[list[float]]:
        """Step and loss."""
        return [[step, _short(total / number)] for step, total, number in self._sums]

    def trend(self) -> list[list[float]]:
        """Step and the loss's weighted mean around it: centred, so that it does not lag."""
        points = self.points()
        reach = max(2, len(points) // _TREND_SHARE)
        trend = []
        for middle, (step, _) in enumerate(points):
            first = max(0, middle - reach)
            near = points[first : middle + reach + 1]
            weights = [1 + reach - abs(first + i - middle) for i in range(len(near))]
            total = sum(w * loss for w, (_, loss) in zip(weights, near, strict=True))
            trend.append([step, _short(total / sum(weights))])
        return trend

    def _halve(self) -> None:
        """Two points become one."""
        halved = []
        for first, second in zip(self._sums[::2], [*self._sums[1::2], None], strict=False):
            if second is None:
                halved.append(first)
            else:
                halved.append((second[0], first[1] + second[1], first[2] + second[2]))
        self._sums = halved
        self._each *= 2


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def chart_options(curve: LossCurve) -> dict[str, Any]:
    """What draws a curve. Its colours are the page's own, so that they follow light and dark."""
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
    points = curve.points()
    # What was before is not known where the first points are gone.
    begins = 0 if not points or points[0][0] <= points[-1][0] / 10 else "dataMin"
    line = {"type": "line", "showSymbol": False, "animation": False, "silent": True}
    return {
        "animation": False,
        "grid": {"left": 8, "right": 16, "top": 16, "bottom": 4, "containLabel": True},
        "xAxis": {**axis, "type": "value", "min": begins, "max": "dataMax",
                  "splitLine": {"show": False}},
        "yAxis": {**axis, "type": "value", "scale": True, "splitNumber": 4,
                  "axisLine": {"show": False}},
        "tooltip": {
            "trigger": "axis", "confine": True, "backgroundColor": "var(--surface)",
            "borderColor": "var(--line)", "textStyle": {"color": "var(--ink)", "fontSize": 13},
        },
        "series": [
            {**line, "name": "loss", "data": points, "color": "var(--part-2)",
             "lineStyle": {"width": 1, "color": "var(--part-2)", "opacity": 0.55}},
            {**line, "name": "trend", "data": curve.trend(), "color": "var(--accent)",
             "lineStyle": {"width": 2, "color": "var(--accent)"}},
        ],
    }  # fmt: skip
