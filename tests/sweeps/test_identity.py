from hypothesis import given
from hypothesis import strategies as st

from sweeps.planning.identity import MAX_NAME_BYTES, run_name, signature, task_config, varying_keys


def test_numbers_count_by_value_not_by_spelling():
    assert signature({"lr": 1, "n": 1000}) == signature({"n": 1e3, "lr": 1.0})


def test_what_cannot_change_the_result_does_not_change_the_signature():
    config = {"lr": 1, "paths": {"outputs": "a"}, "cluster": {"workers": 1}, "logging": {"x": 1}}
    assert signature(config) == signature({"lr": 1})
    assert signature({"lr": 1}) != signature({"lr": 2})


def test_bool_and_number_sign_differently():
    assert signature({"x": True}) != signature({"x": 1})


def test_the_task_gets_no_key_of_the_engine():
    assert task_config({"task": "a.b", "sweep": {}, "cluster": {}, "lr": 1}) == {"lr": 1}


def test_name_holds_what_varies_and_the_first_digits_of_the_signature():
    varying = {
        "optimizer.optimizer_params.lr": 0.001,
        "optimizer.optimizer_params.weight_decay": 0.1,
    }
    assert run_name(varying, "3fa9c1" + "0" * 58) == "lr-0.001-weight_decay-0.1-3fa9c1"
    assert run_name({}, "3fa9c1" + "0" * 58) == "run-3fa9c1"


@given(st.dictionaries(st.text(), st.text(), max_size=5))
def test_any_value_gives_a_safe_and_short_directory_name(varying):
    name = run_name(varying, "0123456789")
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert name.endswith("-012345")
    assert "/" not in name
    assert not name.startswith(".")
    assert name.isascii()


def test_varying_keys_are_those_whose_value_differs_or_is_absent():
    points = [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 3, "c": 4}]
    assert varying_keys(points) == ["b", "c"]
