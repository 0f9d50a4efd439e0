import itertools
import json
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rundir import UserError
from sweeps.define import sampling
from sweeps.define.definition import KEYS, points

LR = "optimizer.optimizer_params.lr"
WD = "optimizer.optimizer_params.weight_decay"
HEAD = "# @package _global_\nhydra: {mode: MULTIRUN}\n"


def drawn(n=20, seed=0, **keys):
    return sampling.draw({"n": n, "seed": seed, "keys": keys}, "sample")


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


@pytest.mark.parametrize("key", KEYS)
def test_a_null_key_counts_as_left_out_where_another_makes_the_points(key):
    rest = {"seeds": 2} if key != "seeds" else {"grid": {"seed": [0, 1]}}
    assert points({**rest, key: None}) == points(rest)
    assert points({"blocks": [{**rest, key: None}]}) == points(rest)


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


LAWS = {
    "a": {"uniform": [-1, 3]},
    "b": {"log_uniform": [1e-4, 1e-1]},
    "c": {"int_uniform": [2, 5]},
    "d": {"choice": ["x", "y", True, None]},
}


def test_a_sample_lies_where_its_distributions_say():
    found = drawn(500, **LAWS)
    assert len({repr(point) for point in found}) == 500
    assert all(-1 <= p["a"] <= 3 and 1e-4 <= p["b"] <= 1e-1 for p in found)
    assert {p["c"] for p in found} == {2, 3, 4, 5}
    assert {p["d"] for p in found} == {"x", "y", True, None}
    assert abs(sum(p["a"] for p in found) / 500 - 1) < 0.15
    assert abs(sum(math.log10(p["b"]) for p in found) / 500 + 2.5) < 0.15
    assert all(float(f"{p['b']:.6g}") == p["b"] for p in found)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers())
def test_a_longer_sample_begins_with_the_shorter_one(n, more, seed):
    assert drawn(n + more, seed, **LAWS)[:n] == drawn(n, seed, **LAWS)


def test_a_sample_depends_on_its_seed_alone_and_a_further_key_changes_no_other():
    alone = [point["a"] for point in drawn(a=LAWS["a"])]
    beside = [point["a"] for point in drawn(**LAWS)]
    assert alone == beside
    assert alone != [point["a"] for point in drawn(seed=1, a=LAWS["a"])]
    assert [p["e"] for p in drawn(e=LAWS["a"])] != alone


def test_the_first_points_of_a_sample_are_the_same_on_every_machine_and_python():
    first = drawn(2, lr={"log_uniform": [1e-4, 1e-1]}, layers={"int_uniform": [1, 100]})
    assert first == [{"lr": 0.00327477, "layers": 44}, {"lr": 0.0351252, "layers": 19}]


def test_a_draw_that_repeats_a_point_is_skipped():
    assert sorted(p["a"] for p in drawn(3, a={"choice": [1, 2, 3]})) == [1, 2, 3]


def test_a_sample_multiplies_with_what_stands_beside_it():
    found = points(
        {
            "grid": {"optimizer": ["adamw", "muon"]},
            "sample": {"n": 3, "keys": {LR: {"uniform": [0, 1]}}},
            "seeds": 2,
        }
    )
    assert len(found) == 12
    assert len({point[LR] for point in found}) == 3


def test_a_params_file_is_a_grid(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({LR: [0.1, 0.2], WD: 0}))
    found = points({"params_file": "p.json", "seeds": [7]}, folders=[tmp_path])
    assert found == [{LR: 0.1, WD: 0, "seed": 7}, {LR: 0.2, WD: 0, "seed": 7}]


def test_a_params_file_may_use_names_of_its_own(tmp_path):
    (tmp_path / "p.json").write_text('{"lr": [0.03, 0.05], "wd": [0.1], "seed": [42]}')
    given = {"path": "p.json", "keys": {"lr": LR, "wd": WD}}
    found = points({"params_file": given}, folders=[tmp_path])
    assert found == [{LR: 0.03, WD: 0.1, "seed": 42}, {LR: 0.05, WD: 0.1, "seed": 42}]


def test_a_params_file_is_looked_for_where_one_launches_and_then_beside_the_definition(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, lr in ((here, 1), (there, 2)):
        folder.mkdir()
        (folder / "p.json").write_text(json.dumps({LR: [lr]}))
    assert points({"params_file": "p.json"}, folders=[here, there]) == [{LR: 1}]
    (here / "p.json").unlink()
    assert points({"params_file": "p.json"}, folders=[here, there]) == [{LR: 2}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": [1],\n "b": [2,]}', "line 2: "),
        ('{"a": [1],\n "b": [2],\n "a": [3]}', "line 3: a is there twice"),
        ('{"a": [1],\n "b": []}', "line 2: b = []; must be a non-empty list of values"),
        ('{"a": [1],\n "b": {"c": 1}}', "line 2: b = {'c': 1}; must be a non-empty list of values"),
        ('{"a": [1,\n NaN]}', "line 2: NaN is no JSON value"),
        ("[1]", 'line 1: must be {"name": [values], …} with at least one name'),
        ("{}", 'line 1: must be {"name": [values], …} with at least one name'),
        ("", "line 1: Expecting value"),
        (b'{"a":\n"\xff"}', "line 2: not UTF-8"),
        ("[" * 100_000, "line 1: nested too deeply"),
    ],
)
def test_a_mistake_in_a_params_file_is_told_with_file_and_line(tmp_path, content, said):
    file = tmp_path / "p.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        points({"params_file": "p.json"}, folders=[tmp_path])
    assert str(error.value).startswith(f"{file}, {said}")


def test_a_name_that_the_params_file_does_not_have_is_refused(tmp_path):
    (tmp_path / "p.json").write_text('{"lr": [1], "wd": [2]}')
    for keys, said in (
        ({"lrr": LR}, "unknown name lrr in sweep.params_file.keys; .*; did you mean lr?"),
        ({"lr": "wd"}, "sweep.params_file.keys gives one config key to two names of "),
    ):
        with pytest.raises(UserError, match=said):
            points({"params_file": {"path": "p.json", "keys": keys}}, folders=[tmp_path])


def test_the_cluster_of_a_block_stands_in_the_points_of_that_block():
    found = points(
        {
            "blocks": [
                {"grid": {"a": [1, 2]}, "cluster": {"timeout_min": 5}},
                {"grid": {"a": [3]}, "cluster": {"additional_parameters": {"nice": 7}}},
                {"grid": {"a": [4]}},
            ]
        }
    )
    assert found == [
        {"a": 1, "cluster.timeout_min": 5},
        {"a": 2, "cluster.timeout_min": 5},
        {"a": 3, "++cluster.additional_parameters.nice": 7},
        {"a": 4},
    ]


def test_exclude_sees_sampled_keys_and_the_cluster():
    sample = {"n": 20, "keys": {"d": {"choice": ["x", "y"]}, "a": {"uniform": [0, 1]}}}
    assert {p["d"] for p in points({"sample": sample, "exclude": [{"d": "x"}]})} == {"y"}
    never = points({"sample": {**sample, "n": 1}, "exclude": [{"d": "z"}]})
    assert len(never) == 1, "which values are drawn depends on n"
    blocks = [{"seeds": [1], "cluster": {"timeout_min": 5}}, {"seeds": [2]}]
    assert points({"blocks": blocks, "exclude": [{"cluster.timeout_min": 5}]}) == [{"seed": 2}]


def test_exclude_tells_true_from_1_and_takes_1_for_1_0():
    found = points({"grid": {"a": [1, True, 2]}, "exclude": [{"a": True}]})
    assert [p["a"] for p in found] == [1, 2]
    assert points({"grid": {"a": [1, 2]}, "exclude": [{"a": 1.0}]}) == [{"a": 2}]


def test_true_and_1_are_different_points():
    assert len(points({"grid": {"a": [1, True]}})) == 2


def test_the_same_run_in_two_blocks_is_refused_with_the_names_of_both():
    blocks = [{"seeds": 1}, {"blocks": [{"runs": [{"a": 1}]}, {"runs": [{"seed": 0.0}]}]}]
    with pytest.raises(UserError) as error:
        points({"blocks": blocks})
    assert str(error.value) == (
        "run (seed=0.0) is in sweep.blocks[0] and again in sweep.blocks[1].blocks[1]; remove one"
    )


def test_what_a_first_stage_found_twice_is_run_once():
    assert points({"after": "one", "grid": {"a": [0.1, 0.1, 0.2]}}) == [{"a": 0.1}, {"a": 0.2}]


def dry_run(shell, *arguments):
    """Return the runs that a launch would submit, as rows of the dry run's table."""
    done = shell("launch", *arguments, "dry_run=true")
    lines = done.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("#"))
    names = lines[head].split()
    starts = [lines[head].index(name) for name in names]
    cells = list(itertools.starmap(slice, itertools.pairwise([*starts, None])))
    table = itertools.takewhile(lambda line: line[:1].isdecimal(), lines[head + 1 :])
    return [{n: line[cell].strip() for n, cell in zip(names, cells, strict=True)} for line in table]


SYNTAX = {
    "list": ([f"{LR}=0.1,0.2"], "lr", ["0.1", "0.2"]),
    "choice": (["optimizer=choice(muon,sgd)"], "optimizer", ["muon", "sgd"]),
    "range": (["seed=range(3,9,3)"], "seed", ["3", "6"]),
    "glob": (["optimizer=glob(nadam*)"], "optimizer", ["nadam", "nadamw"]),
    "glob with an exception": (
        ["optimizer=glob([nadam*,adam*],exclude=*w)"],
        "optimizer",
        ["adam", "nadam"],
    ),
    "sort": (["seed=sort(3,1,2)"], "seed", ["1", "2", "3"]),
    "shuffle": (["seed=shuffle(range(1,6))"], "seed", ["1", "2", "3", "4", "5"]),
    "tags": (["seed=tag(a,b,choice(1,2))"], "seed", ["1", "2"]),
    "cast": ([f"{LR}=float(range(1,3))"], "lr", ["1.0", "2.0"]),
    "quotes": (["+tag='x,y','z'"], "+tag", ["x,y", "z"]),
    "lists": (["optimizer.optimizer_params.betas=[0.9,0.95],[0.9,0.99]"], "betas", None),
}


@pytest.mark.parametrize("case", SYNTAX)
def test_promise_18_hydras_own_sweep_syntax_means_what_it_means_in_hydra(case, shell, toy):
    overrides, column, values = SYNTAX[case]
    rows = dry_run(shell, "-m", *toy, *overrides)
    if values is None:
        assert len(rows) == 2
    else:
        assert [row[column] for row in rows] == values or case == "shuffle"
        assert sorted(row[column] for row in rows) == values


def test_promise_18_every_kind_of_block_in_one_definition(shell, toy):
    """Paired, conditional and concatenated, with sweeper params and the command line on top."""
    folder = shell.cwd / "mine" / "sweep"
    folder.mkdir(parents=True)
    (folder / "p.json").write_text('{"wd": [0.0, 0.1]}')
    definition = {
        "blocks": [
            {
                "zip": {LR: [0.1, 0.2], "training.training_params.max_steps": [2, 3]},
                "params_file": {"path": "p.json", "keys": {"wd": WD}},
                "exclude": [{LR: 0.1, WD: 0.1}],
                "cluster": {"cpus_per_task": 1},
            },
            {
                "runs": [{"optimizer": "muon", "optimizer.optimizer_params.ns_steps": 3}],
                "sample": {"n": 2, "keys": {LR: {"log_uniform": [0.001, 0.1]}}},
            },
        ],
        "seeds": 2,
    }
    text = yaml.safe_dump({"sweep": definition})
    (folder / "all.yaml").write_text(HEAD + text)
    command = ("launch", "--config-dir", "mine", *toy, "sweep=all", "device=cpu,auto")
    shell(*command)
    records = [json.loads(f.read_text()) for f in (shell.cwd / "multirun/all").rglob("run.json")]
    assert len(records) == (3 + 2) * 2 * 2
    params = [record["config"]["optimizer"]["optimizer_params"] for record in records]
    assert {p["lr"] for p in params if p["name"] == "adamw"} == {0.1, 0.2}
    assert {p["ns_steps"] for p in params if p["name"] == "muon"} == {3}
    assert not any(p["lr"] == 0.1 and p["weight_decay"] == 0.1 for p in params)
    fewer = dry_run(shell, *command[1:], "seed=5")
    assert len(fewer) == (3 + 2) * 2, "a key on the command line replaces what the definition says"


def test_promise_17_blocks_ask_the_cluster_for_different_things(shell, toy):
    folder = shell.cwd / "mine" / "sweep"
    folder.mkdir(parents=True)
    blocks = [
        {"grid": {LR: [0.1, 0.2]}, "cluster": {"timeout_min": 5}},
        {"grid": {LR: [0.3]}, "cluster": {"timeout_min": 9}},
    ]
    (folder / "two.yaml").write_text(HEAD + yaml.safe_dump({"sweep": {"blocks": blocks}}))
    shell("launch", "--config-dir", "mine", *toy, "sweep=two")
    found = {}
    for file in (shell.cwd / "multirun/two").rglob("run.json"):
        assert "timeout" not in file.parent.name, "what a run asks for is no part of what it is"
        config = json.loads(file.read_text())["config"]
        lr = config["optimizer"]["optimizer_params"]["lr"]
        found[lr] = config["cluster"]["timeout_min"]
    assert found == {0.1: 5, 0.2: 5, 0.3: 9}
    shares = [
        json.loads(file.read_text())["share"]["runs"]
        for file in (shell.cwd / "multirun/two").rglob("submission.json")
    ]
    assert sorted(len(runs) for runs in shares) == [1, 2], "one submission for each"


def test_a_sample_is_extended_from_the_command_line(shell, toy):
    folder = shell.cwd / "mine" / "sweep"
    folder.mkdir(parents=True)
    node = {"sample": {"n": 2, "keys": {LR: {"uniform": [0, 1]}}}}
    (folder / "more.yaml").write_text(HEAD + yaml.safe_dump({"sweep": node}))
    command = ("launch", "--config-dir", "mine", *toy, "sweep=more")
    shell(*command)
    assert (
        "3 runs: 1 planned, 2 completed; 1 to submit" in shell(*command, "sweep.sample.n=3").stderr
    )
    refused = shell(*command, "sweep.sample.n=3,4", code=2)
    assert "a sweep is one sweep; launch each by itself" in refused.stderr


def test_an_inheriting_definition_drops_with_null_what_it_inherits(shell, toy):
    folder = shell.cwd / "mine" / "sweep"
    folder.mkdir(parents=True)
    base = {"grid": {LR: [0.1, 0.2]}, "seeds": 3, "cluster": {"timeout_min": 5}}
    (folder / "base.yaml").write_text(HEAD + yaml.safe_dump({"sweep": base}))
    heir = {"defaults": ["base"], "sweep": {"seeds": None, "cluster": None}}
    (folder / "heir.yaml").write_text("# @package _global_\n" + yaml.safe_dump(heir))
    command = ("launch", "--config-dir", "mine", *toy, "sweep=heir", "dry_run=json")
    runs = json.loads(shell(*command).stdout)["runs"]
    assert len(runs) == 2
    assert not any("cluster" in text for run in runs for text in run["overrides"])
