from tasks.eta.rate_meter import RateMeter


def test_a_pace_counts_only_what_was_made_between_two_reports() -> None:
    times = iter([100.0, 104.0, 190.0, 192.0, 500.0, 501.0])
    pace = RateMeter(lambda: next(times))
    pace.at(11)
    assert pace.unit_s is None
    pace.at(13)  # 4 s for 2
    pace.pause()
    pace.at(14)
    pace.at(15)  # 2 s for 1
    pace.at(12)  # begun anew
    pace.at(13)  # 1 s for 1
    assert pace.unit_s == 7 / 4
