import json
import math

from console.pages.job.loss import MAX_POINTS, LossCurve, comparison_chart, loss_chart, rate_chart


def test_many_steps_become_a_few_hundred_points() -> None:
    curve = LossCurve()
    for step in range(1, 300_001):
        curve.add(step, 1 / step)
    points = curve.points()
    assert MAX_POINTS // 2 <= len(points) <= MAX_POINTS
    assert points[-1][0] == 300_000
    assert [it[0] for it in points] == sorted({it[0] for it in points})
    assert len(json.dumps(loss_chart(curve))) < 40_000


def test_a_point_is_the_mean_of_its_steps() -> None:
    curve = LossCurve()
    for step in range(1, MAX_POINTS + 2):
        curve.add(step, float(step % 2))
    assert {loss for _, loss in curve.points()[:-1]} == {0.5}


def test_few_steps_are_shown_unchanged() -> None:
    curve = LossCurve()
    for step, loss in enumerate((3.0, 2.0, 1.0), start=1):
        curve.add(step, loss)
    assert curve.points() == [[1, 3.0], [2, 2.0], [3, 1.0]]


def test_a_resumed_run_replaces_later_points() -> None:
    curve = LossCurve()
    for step in range(1, 11):
        curve.add(step, 1.0)
    curve.add(6, 2.0)
    assert curve.points()[-2:] == [[5, 1.0], [6, 2.0]]
    assert curve.last == (6, 2.0)


def test_a_non_finite_loss_is_omitted() -> None:
    curve = LossCurve()
    curve.add(1, math.nan)
    curve.add(2, math.inf)
    assert curve.points() == []


def test_the_trend_of_a_line_is_the_line() -> None:
    curve = LossCurve()
    for step in range(1, 200):
        curve.add(step, 100.0 - step / 4)
    middle = slice(20, -20)
    assert curve.trend()[middle] == curve.points()[middle]


def test_a_logarithmic_axis_leaves_out_what_is_not_positive() -> None:
    curve = LossCurve()
    for step, loss in enumerate((1.0, 0.0, 0.1), start=1):
        curve.add(step, loss)
    chart = loss_chart(curve, is_log=True)
    assert chart["yAxis"]["type"] == "log"
    assert chart["series"][0]["data"] == [[1, 1.0], [3, 0.1]]
    assert loss_chart(curve)["series"][0]["data"] == [[1, 1.0], [2, 0.0], [3, 0.1]]


def test_compared_jobs_differ_by_color_and_pattern() -> None:
    curves = {name: LossCurve() for name in "abcd"}
    for curve in curves.values():
        curve.add(1, 1.0)
    series = comparison_chart(curves)["series"]
    assert [line["name"] for line in series] == list("abcd")
    assert len({str(line["lineStyle"]["type"]) for line in series}) == 4
    assert len({line["color"] for line in series}) == 4
    assert rate_chart(curves["a"])["series"][0]["data"] == [[1, 1.0]]
