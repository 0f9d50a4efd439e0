import pytest

from rundir.wording import count_of, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.2, "0 s"),
        (42.4, "42 s"),
        (59.6, "1:00"),
        (185, "3:05"),
        (3723, "1:02:03"),
        (90000, "25:00:00"),
    ],
)
def test_durations_grow_from_seconds_to_hours(seconds, text):
    assert duration(seconds) == text


def test_one_is_singular():
    assert [count_of(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
