import pytest

from rundir import UserError
from sweeps.definition import points


def test_grid_is_every_combination_in_the_order_written():
    found = points({"grid": {"optimizer": ["adamw", "muon"], "lr": [1, 2]}})
    assert found == [
        {"optimizer": "adamw", "lr": 1},
        {"optimizer": "adamw", "lr": 2},
        {"optimizer": "muon", "lr": 1},
        {"optimizer": "muon", "lr": 2},
    ]


def test_zip_pairs_first_with_first():
    assert points({"zip": {"a": [1, 2], "b": [3, 4]}}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]


def test_seeds_replicate_every_point():
    found = points({"runs": [{"a": 1}, {"a": 2}], "seeds": 2})
    assert found == [
        {"a": 1, "seed": 0},
        {"a": 1, "seed": 1},
        {"a": 2, "seed": 0},
        {"a": 2, "seed": 1},
    ]


def test_blocks_are_a_union_and_share_what_stands_beside_them():
    found = points({"seeds": [7], "blocks": [{"grid": {"a": [1]}}, {"runs": [{"b": 2}]}]})
    assert found == [{"seed": 7, "a": 1}, {"seed": 7, "b": 2}]


def test_exclude_drops_points_that_match_all_of_an_entry():
    found = points({"grid": {"a": [1, 2], "b": [1, 2]}, "exclude": [{"a": 1, "b": 2}]})
    assert {"a": 1, "b": 2} not in found
    assert len(found) == 3


def test_exclude_beside_blocks_sees_what_the_blocks_set():
    found = points({"blocks": [{"grid": {"a": [1, 2]}}], "exclude": [{"a": 1}]})
    assert found == [{"a": 2}]


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        (
            {"gird": {}},
            (
                "unknown key gird in sweep; must be one of: after, blocks, cluster, exclude, grid, "
                "name, params_file, runs, sample, seeds, zip; did you mean grid?"
            ),
        ),
        ({"grid": {"lr": []}}, "sweep.grid.lr = []; must be a non-empty list of values"),
        ({"grid": {"lr": 0.1}}, "sweep.grid.lr = 0.1; must be a non-empty list of values"),
        ({"grid": [1]}, "sweep.grid = [1]; must be a non-empty mapping of config keys"),
        (
            {"zip": {"a": [1, 2], "b": [1]}},
            "sweep.zip has lists of unequal length (a: 2, b: 1); zip pairs them one to one",
        ),
        ({"runs": {"a": 1}}, "sweep.runs = {'a': 1}; must be a list of {key: value} entries"),
        ({"seeds": 0}, "sweep.seeds = 0; must be a count ≥ 1 or a list of whole numbers"),
        ({"seeds": True}, "sweep.seeds = true; must be a count ≥ 1 or a list of whole numbers"),
        (
            {"grid": {"a": [1]}, "runs": [{"a": 2}]},
            "sweep: key a is set twice; give it in one place of a block",
        ),
        (
            {"grid": {"optimizer": ["adamw"]}, "exclude": [{"optimzer": "adamw"}]},
            (
                "unknown key optimzer in sweep.exclude; must be one of: optimizer; "
                "did you mean optimizer?"
            ),
        ),
        (
            {"grid": {"a": [1]}, "exclude": [{"a": 1}]},
            "sweep excludes every point; nothing is left to run",
        ),
        ({"blocks": [{"grid": {1: [2]}}]}, "sweep.blocks[0].grid: key 1 must be a text; quote it"),
    ],
)
def test_what_is_wrong_with_a_definition_is_said_in_one_line(definition, said):
    with pytest.raises(UserError) as error:
        points(definition)
    assert str(error.value) == said
