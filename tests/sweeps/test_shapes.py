"""Runs of one shape resolve, without being composed, to what Hydra itself composes for them."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rundir import UserError
from sweeps.define import definition
from sweeps.define.overrides import override, parse, setting
from sweeps.launch import references
from sweeps.launch.entry import CONFIG_DIR, CONFIG_NAME
from sweeps.planning.composition import Composer, split

TREE = {
    "config.yaml": """
defaults: [_self_, g: one, {optional h: null}]
x: 1
y: 2.5
text: hello
nothing: null
flag: true
list: [1, '${x}', c]
needed: ???
copy: ${x}
both: ${text}-${g.name}
chain: ${copy}
whole: ${g}
part: ${whole.name}
relative: {a: 1, b: '${.a}', c: '${..y}'}
called: ${oc.select:nothing,${y}}
nested: ${oc.select:${text},0}
choice: ${hydra:runtime.choices.g}
environment: ${oc.env:HOME}
""",
    "g/one.yaml": "name: one\nsize: ${x}\ninner: {deep: 1, list: [1, {k: '${y}'}]}\n",
    "g/two.yaml": "name: two\nsize: 3\ninner: {deep: null, list: []}\n",
    "h/more.yaml": "z: ${g.size}\n",
}
THERE = ["x", "y", "text", "nothing", "flag", "list", "copy", "relative.a", "relative.b", "g.name"]
THERE += ["g.size", "g.inner", "g.inner.deep", "g.inner.list", "needed", "list.0"]
FRESH = ["fresh", "g.fresh", "g.inner.fresh"]
ODD = ["whole", "whole.name", "x.below", "h", "h.z", "relative.c"]
TEXTS = st.text(max_size=4) | st.sampled_from(["a'b", 'a"b', "a\nb", "???", "$x", "\\", "é,ü", ""])
PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2) | TEXTS
PLAIN = PLAIN.filter(lambda v: not isinstance(v, str) or ("${" not in v and v.isprintable()))
LISTS = st.lists(PLAIN, max_size=2)
DICTS = st.dictionaries(st.sampled_from(["deep", "k", "name"]), PLAIN, min_size=1, max_size=2)
REFERENCES = st.sampled_from(
    ["${x}", "${g}", "a${y}", "${list}", "${nowhere}", "${oc.env:HOME}", "${..y}"]
)
VALUES = {"plain": PLAIN, "list": LISTS, "dict": DICTS, "reference": REFERENCES}


@st.composite
def runs_alike(draw) -> list[list[str]]:
    """Return the overrides of five runs: of the same keys, with values of their own."""
    kinds = st.sampled_from(["plain", "plain", "plain", "list", "dict", "reference"])
    change = st.tuples(st.just(""), st.sampled_from(THERE), kinds)
    plain = st.tuples(st.just(""), st.sampled_from(THERE), st.just("plain"))
    add = st.tuples(st.sampled_from(["+", "++"]), st.sampled_from(FRESH), kinds)
    drop = st.tuples(st.just("~"), st.sampled_from(["flag", "choice", "g.inner"]), kinds)
    any_key = st.sampled_from([*THERE, *FRESH, *ODD])
    odd = st.tuples(st.sampled_from(["", "+", "++", "~"]), any_key, kinds)
    slot = st.one_of(plain, plain, change, add, drop, odd)
    slots = draw(st.lists(slot, min_size=1, max_size=4))
    groups = draw(st.sampled_from([[], ["g=two"], ["h=more"], ["g=two", "h=more"]]))
    needed = draw(st.sampled_from([["needed=1"], ["needed=1"], ["needed=1"], []]))

    def one(prefix: str, key: str, kind: str) -> str:
        return f"~{key}" if prefix == "~" else override(f"{prefix}{key}", draw(VALUES[kind]))

    return [[*groups, *needed, *(one(*slot) for slot in slots)] for _ in range(5)]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A small config tree with every kind of interpolation."""
    root = tmp_path_factory.mktemp("conf")
    for name, text in TREE.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


def as_hydra_does(loader, master, overrides: list[str]) -> str:
    """Return the JSON of what Hydra's own sweepers compose; an empty text if they can't."""
    try:
        whole = loader.load_sweep_config(master, overrides)
        HydraConfig.instance().cfg = OmegaConf.create({"hydra": whole.hydra})
        config = split(whole).config
        return json.dumps(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except (HydraException, OmegaConfBaseException, AssertionError, ValueError, TypeError):
        return ""


def as_we_do(composer: Composer, overrides: list[str]) -> str:
    try:
        return json.dumps(composer.resolved([parse(text) for text in overrides])[1])
    except UserError:
        return ""


def counted(composer: Composer) -> list[tuple[str, ...]]:
    """Return a list that grows by the overrides of every run that is composed on its own."""
    calls: list[tuple[str, ...]] = []
    compose = composer.compose
    composer.compose = lambda overrides: calls.append(tuple(overrides)) or compose(overrides)
    return calls


@settings(max_examples=20, deadline=None)
@given(runs_alike())
def test_generated_runs_resolve_as_hydra_does(small, alike):
    with initialize_config_dir(config_dir=str(small), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        composer = Composer(loader, "config")
        ours = [as_we_do(composer, overrides) for overrides in alike]
        assert ours == [as_hydra_does(loader, master, overrides) for overrides in alike]


LR = "optimizer.optimizer_params.lr"
SHIPPED = sorted(path.stem for path in (CONFIG_DIR / "sweep").glob("*.yaml"))


@pytest.fixture
def loader():
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_sample_of_every_shipped_sweep_resolves_as_hydra_does(loader, name):
    master = loader.load_configuration(CONFIG_NAME, [f"sweep={name}"], run_mode=RunMode.MULTIRUN)
    with references.resolving(lambda *_: 0.01):
        node = OmegaConf.to_container(master.sweep, resolve=True)
    points = definition.points(node, folders=[CONFIG_DIR / "sweep"])
    composer = Composer(loader, CONFIG_NAME)
    for point in points[:: max(1, len(points) // 4)]:
        texts = [f"sweep={name}", *(override(key, value) for key, value in point.items())]
        assert as_we_do(composer, texts) == as_hydra_does(loader, master, texts) != ""


def test_promise_19_a_grid_of_ten_thousand_runs_is_composed_four_times(loader):
    composer = Composer(loader, CONFIG_NAME)
    calls = counted(composer)
    loads = []
    load = composer._load
    composer._load = lambda groups: loads.append(groups) or load(groups)
    grid = itertools.product(["adamw", "muon"], range(100), range(50))
    for optimizer, lr, seed in grid:
        point = {"optimizer": optimizer, LR: lr / 100, "seed": seed}
        resolved = composer.resolved([setting(*item) for item in point.items()])[1]
        assert resolved["optimizer"]["optimizer_params"]["name"] == optimizer
        assert (resolved["optimizer"]["optimizer_params"]["lr"], resolved["seed"]) == (
            lr / 100,
            seed,
        )
    assert loads == [("optimizer=adamw",), ("optimizer=muon",)]
    assert len(calls) == 4


def test_promise_19_samples_of_many_values_are_not_parsed_one_by_one(loader):
    composer = Composer(loader, CONFIG_NAME)
    parse.cache_clear()
    for i in range(1000):
        composer.resolved([setting(LR, 1 / (i + 3)), setting("seed", i)])
    assert parse.cache_info().misses <= 6


def test_no_run_shares_a_container_with_another(loader):
    composer = Composer(loader, CONFIG_NAME)
    first = [composer.resolved([setting("seed", i)])[1] for i in range(4)]
    kept = copy.deepcopy(first)
    first[3]["optimizer"]["optimizer_params"]["betas"][0] = 7
    first[1]["model"].clear()
    assert composer.resolved([setting("seed", 3)])[1] == kept[3]
    assert first[2] == kept[2]


@pytest.mark.parametrize(
    ("overrides", "quick"),
    [
        (["x={}"], True),
        (["x={}", "text=a"], True),
        (["~flag", "h=more", "x={}"], True),
        (["list=[{}]", "+fresh={}"], True),
        (["relative.a={}", "g.name=a", "nothing=null"], True),
        (["x={}", "x=3"], False),
        (["list.0={}"], False),
        (["g.inner.deep={}", "g.inner={{list: [2]}}"], False),
        (["~flag=true", "x={}"], False),
    ],
)
def test_only_overrides_that_act_on_their_own_spare_a_composition(small, overrides, quick):
    with initialize_config_dir(config_dir=str(small), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        composer = Composer(loader, "config")
        calls = counted(composer)
        for i in range(4):
            texts = ["needed=1", *(text.format(i) for text in overrides)]
            assert as_we_do(composer, texts) == as_hydra_does(loader, master, texts) != ""
        assert len(calls) == (2 if quick else 4)


def test_what_a_resolver_gives_is_asked_for_in_every_run(loader, monkeypatch):
    composer = Composer(loader, CONFIG_NAME)
    found = []
    for i in range(4):
        monkeypatch.setenv("TAG", str(i))
        run = [parse("+tag=${oc.env:TAG}"), setting("seed", i)]
        found.append(composer.resolved(run)[1]["tag"])
    assert found == ["0", "1", "2", "3"]


def test_typed_nodes_convert_values_and_refuse_wrong_ones(tmp_path):
    @dataclass
    class Typed:
        rate: float = 0.1
        count: int = 1
        sizes: list[int] = field(default_factory=lambda: [1])

    ConfigStore.instance().store(group="typed", name="kind", node=Typed)
    (tmp_path / "config.yaml").write_text("defaults: [{typed: kind}]\n")
    with initialize_config_dir(config_dir=str(tmp_path), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        composer = Composer(loader, "config")
        calls = counted(composer)
        for i in range(5):
            texts = [f"typed.rate={i}", f"typed.count='{i}'", f"typed.sizes=[{i},2]"]
            assert as_we_do(composer, texts) == as_hydra_does(loader, master, texts) != ""
        assert len(calls) == 2
        with pytest.raises(UserError, match="'many' of type 'str' could not be converted"):
            composer.resolved(
                [parse(text) for text in ["typed.rate=1", "typed.count=many", "typed.sizes=[1,2]"]]
            )
