"""Whether a launch is past its input."""

from sweeps.planning.phase import begin_work, launching


def test_a_launch_is_at_work_from_when_it_says_so_until_its_own_end():
    begin_work()  # nobody asks
    with launching() as first:
        assert not first.is_at_work
        begin_work()
        assert first.is_at_work
    with launching() as second:
        assert not second.is_at_work
