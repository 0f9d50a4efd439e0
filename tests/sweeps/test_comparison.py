import json
import math

import pytest

from rundir import UserError
from sweeps.commands.comparison import compare


def write(path, records):
    path.mkdir()
    lines = [{"stream": "train", "t": 0.0, "attempt": 1, **record} for record in records]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def verdict(tmp_path, before, after, **more):
    return compare(write(tmp_path / "a", before), write(tmp_path / "b", after), **more)


def curve(*losses, **more):
    return [{"step": step, "loss": loss, **more} for step, loss in enumerate(losses, 1)]


def test_equal_bits_and_nan_are_equal_and_times_do_not_count(tmp_path):
    found = verdict(
        tmp_path,
        curve(1.5, math.nan, math.inf, step_time=1.0, tokens_per_second=5.0, memory=8.0),
        curve(1.5, math.nan, math.inf, step_time=2.0, tokens_per_second=6.0, memory=9.0),
    )
    assert str(found) == "equal to the bit: 3 values"
    assert found.exit_code == 0


def test_within_the_tolerance_the_largest_difference_is_named(tmp_path):
    found = verdict(tmp_path, curve(1.0, 2.0, 3.0), curve(1.0, 2.0 * (1 + 3e-7), 3.0 * (1 + 1e-8)))
    where = "largest relative difference 3e-07 at train step 2 loss"
    assert str(found) == f"equal to tolerance 1e-05 ({where}): 3 values"
    assert found.exit_code == 0


def test_beyond_it_the_first_step_is_named_with_both_values(tmp_path):
    found = verdict(tmp_path, curve(1.0, 2.0, 3.0), curve(1.0, 2.5, 9.0))
    assert str(found) == (
        "different at train step 2: loss 2.0 → 2.5 (relative difference 0.2, tolerance 1e-05)"
    )
    assert found.exit_code == 1


def test_a_tolerance_of_zero_demands_the_bits_but_not_the_sign_of_zero(tmp_path):
    one, other = curve(0.0, 1.0), curve(-0.0, math.nextafter(1.0, 2.0))
    found = verdict(tmp_path, one, other, rtol=0)
    assert str(found).startswith("different at train step 2: loss 1.0 → 1.0000000000000002 ")


@pytest.mark.parametrize(
    ("before", "after"), [(math.nan, 1.0), (math.inf, 1.0), (math.inf, -math.inf), (1e308, -1e308)]
)
def test_what_is_not_finite_equals_only_itself(tmp_path, before, after):
    found = verdict(tmp_path, curve(before), curve(after), rtol=0.9)
    assert str(found).startswith(f"different at train step 1: loss {before!r} → {after!r} (")
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["verdict"] == "different"


def test_steps_of_one_side_are_a_difference_and_are_named(tmp_path):
    found = verdict(tmp_path, curve(1.0, 2.0, 3.0, 4.0, lr=0.1), curve(1.0, 2.0, 3.0))
    assert str(found).startswith("different at train step 1: lr 0.1 → missing (")
    assert found.missing == (
        "only in the first: lr at train step 1 to 4 (4 steps)",
        "only in the first: loss at train step 4",
    )


def test_after_a_resume_the_latest_attempt_at_a_step_counts(tmp_path):
    resumed = [*curve(1.0, 9.0, 9.0), *[{**r, "attempt": 2} for r in curve(1.0, 2.0, 3.0)[1:]]]
    assert str(verdict(tmp_path, resumed, curve(1.0, 2.0, 3.0))) == "equal to the bit: 3 values"


def test_a_torn_last_line_and_text_are_no_values(tmp_path):
    one = write(tmp_path / "a", [*curve(1.0), {"step": 2, "note": "x"}])
    with (one / "metrics.jsonl").open("a") as file:
        file.write('{"stream": "train", "st')
    assert str(compare(one, write(tmp_path / "b", curve(1.0)))) == "equal to the bit: 1 value"


def test_runs_without_values_and_impossible_tolerances_are_refused(tmp_path):
    empty, full = write(tmp_path / "a", []), write(tmp_path / "b", curve(1.0))
    with pytest.raises(UserError, match="holds no values; there is nothing to compare"):
        compare(empty, full)
    with pytest.raises(UserError, match="--rtol = 2; must be at least 0 and below 1"):
        compare(full, full, rtol=2)
