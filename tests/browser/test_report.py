"""The report as its readers meet it: in a browser, from disk, without a network."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from analysis import heatmap
from analysis.__main__ import main

FILTER = "#filter"
ROWS = "#leaderboard tbody tr"
HOSTILE = "<script>window.__hacked=1<|script>"


def column(page: Page, header: str) -> list[str]:
    """Return the texts of a column of the leaderboard, from the top."""
    heads = page.locator("#leaderboard thead th").all_inner_texts()
    place = [text.strip() for text in heads].index(header)
    return page.locator(f"{ROWS} td:nth-child({place + 1})").all_inner_texts()


def numbers(texts: list[str]) -> list[float]:
    return [float(text) for text in texts if re.fullmatch(r"[0-9.]+", text)]


def drawn(page: Page, chart: str) -> None:
    """Bring a chart onto the screen and wait until it is there."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{chart} .main-svg")


def data(page: Page, chart: str, what: str) -> object:
    return page.evaluate(f"document.getElementById('{chart}').{what}")


def scroll_through(page: Page) -> None:
    for chart in ("curve-chart", "rate-chart", "heatmap-chart", "parallel-chart"):
        drawn(page, chart)


def test_it_opens_and_draws_everything_without_errors_or_network(page) -> None:
    scroll_through(page)
    assert page.title() == "small · optsweep"
    expect(page.locator("#tiles")).to_contain_text("22")
    expect(page.locator("#statebar")).to_contain_text("diverged")
    expect(page.locator("#verdicts")).to_contain_text("✓ beats")
    expect(page.locator("#problem-list")).to_contain_text("train loss = nan")
    expect(page.locator("#provenance-list")).to_contain_text("0123456789abcdef")
    expect(page.locator("#provenance-list")).to_contain_text("SLURM job")
    expect(page.locator("footer")).to_contain_text("MB")


def test_any_setting_can_be_asked_whether_it_beats_or_is_beaten(page) -> None:
    card = page.locator("#verdicts .verdict", has_text="Best setting")
    card.locator("summary").click()
    rows = card.locator("tbody tr")
    expect(card.get_by_label("Compare")).to_have_value("muon, lr 0.01")
    count = rows.count()
    beaten = rows.filter(has_text="✓ beats").first.locator("td").all_inner_texts()
    card.get_by_label("Compare").select_option(beaten[1])
    expect(rows).to_have_count(count)
    row = rows.filter(has_text="✗ is beaten").filter(has_text="muon, lr 0.01").first
    assert row.locator("td").nth(3).inner_text() == beaten[3].replace("\N{MINUS SIGN}", "+")
    assert row.locator("td").last.inner_text() == beaten[-1]


def test_every_state_has_its_row_and_the_bad_ones_come_last(page) -> None:
    states = column(page, "state")
    assert len(states) == 22
    assert states[:18] == ["completed"] * 18
    assert set(states[18:]) == {"completed", "planned", "diverged", "out of memory"}
    assert set(states[-2:]) == {"diverged", "out of memory"}


def test_a_click_on_a_header_sorts_and_a_second_one_turns_it_round(page) -> None:
    header = page.locator("#leaderboard th", has=page.get_by_role("button", name="lr", exact=True))
    header.get_by_role("button").click()
    expect(header).to_have_attribute("aria-sort", "ascending")
    rates = numbers(column(page, "lr"))
    assert rates == sorted(rates)
    assert len(rates) == 22
    header.get_by_role("button").press("Enter")
    expect(header).to_have_attribute("aria-sort", "descending")
    assert numbers(column(page, "lr")) == sorted(rates, reverse=True)


def test_words_and_comparisons_filter_table_and_curves(page) -> None:
    drawn(page, "curve-chart")
    before = page.locator("#curve-legend").inner_text()
    page.fill(FILTER, "muon lr<0.02")
    expect(page.locator(ROWS)).to_have_count(6)
    assert set(column(page, "optimizer")) == {"muon"}
    assert max(numbers(column(page, "lr"))) == 0.01
    assert page.locator("#curve-legend").inner_text() != before
    page.fill(FILTER, "state in (diverged, planned)")
    expect(page.locator(ROWS)).to_have_count(2)
    page.fill(FILTER, 'lr>=0.3 and (state=planned or "diverged")')
    expect(page.locator(ROWS)).to_have_count(2)
    page.fill(FILTER, "val.loss>=2.0 val.loss<2.2 optimizer!=adamw")
    losses = numbers(column(page, "val loss"))
    assert losses
    assert all(2.0 <= loss < 2.2 for loss in losses)


CONDITIONS = [
    "lr < 0.02 and not optimizer = muon",
    "lr>=0.01 and (optimizer = adamw or state in (diverged, planned))",
    "val.loss != null or reason ~ NAN",
    "not val.loss > 2.2",
    "final.val.loss != 2",
    "optimizer = Muon",
    "optimizer < b",
    "NOT (seed = 1 OR seed = 2) AND lr = 1e-2",
    "diverged = true",
    "name = 'muon-0.01-0' or \"name\" ~ hostile",
    "best.val.loss > 0 and val.loss = nan",
    "seed in (0, null)",
    "momentum = null",
    "not momentum = 0.9",
    "lr < inf and lr > -inf",
]
FAULTS = ["lr >", "lr > big", "diverged = 2", "(lr > 1", "seed in 3", "seed in (3 4)", "! lr > 1"]


def test_the_filter_speaks_the_language_of_where(page, small: Path, capsys) -> None:
    def told(condition: str) -> tuple[int, str]:
        where = ["table", "--store", str(small.parent / "store"), "--json", "--limit", "0"]
        code = main([*where, "--where", condition])
        out, err = capsys.readouterr()
        return (len(json.loads(out)), "") if code == 0 else (22, err.strip().partition("; ")[2])

    alert = page.locator("#filterbar [role=alert]")
    for condition in CONDITIONS:
        page.fill(FILTER, condition)
        expect(page.locator(ROWS)).to_have_count(max(1, told(condition)[0]))
        assert alert.inner_text() == ""
    page.fill(FILTER, "")
    for fault in FAULTS:
        page.fill(FILTER, fault)
        assert alert.inner_text() == told(fault)[1]
        expect(page.locator(ROWS)).to_have_count(22)


def test_a_filter_that_makes_no_sense_says_so_and_changes_nothing(page) -> None:
    page.fill(FILTER, "optimiser=muon")
    expect(page.locator("#filterbar [role=alert]")).to_have_text(
        "no column optimiser; did you mean optimizer?"
    )
    expect(page.locator(FILTER)).to_have_attribute("aria-invalid", "true")
    expect(page.locator(ROWS)).to_have_count(22)
    page.fill(FILTER, "lr<fast")
    expect(page.locator("#filterbar [role=alert]")).to_have_text(
        "must compare lr with a number, at character 4"
    )


def test_the_table_can_be_saved_as_it_is_shown(page) -> None:
    page.fill(FILTER, "optimizer=muon lr<0.02")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "small.csv"
    with Path(download.value.path()).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["lr"] for row in rows] == column(page, "lr")
    losses = [float(row["final.val.loss"]) for row in rows]
    assert losses == pytest.approx(numbers(column(page, "val loss")), abs=1e-4)
    assert len(rows) == 6


def test_a_link_leads_to_the_same_view(page, window) -> None:
    page.fill(FILTER, "optimizer=muon lr>0.005")
    page.get_by_label("log y").check()
    fragment = page.evaluate("location.hash")
    page.evaluate("location.hash = 'filter='")
    expect(page.locator(ROWS)).to_have_count(22)
    page.goto(f"{window.address}{fragment}")
    expect(page.locator(FILTER)).to_have_value("optimizer=muon lr>0.005")
    expect(page.locator(ROWS)).to_have_count(7)
    drawn(page, "curve-chart")
    assert data(page, "curve-chart", "layout.yaxis.type") == "log"
    page.reload()
    expect(page.locator(FILTER)).to_have_value("optimizer=muon lr>0.005")
    expect(page.get_by_label("log y")).to_be_checked()


PIXEL = """(() => {
  const node = document.getElementById("curve-chart"), { xaxis, yaxis } = node._fullLayout;
  const at = node.data[0].x.indexOf(8), box = node.getBoundingClientRect();
  return [
    box.x + xaxis._offset + xaxis.d2p(node.data[0].x[at]),
    box.y + yaxis._offset + yaxis.d2p(node.data[0].y[at]),
  ];
})()"""


def test_a_curve_under_the_pointer_says_whose_it_is(page) -> None:
    page.fill(FILTER, "muon")
    drawn(page, "curve-chart")
    x, y = page.evaluate(PIXEL)
    page.mouse.move(x - 4, y)
    page.mouse.move(x, y)
    tip = page.locator("#tip")
    expect(tip).to_be_visible()
    expect(tip).to_contain_text(re.compile(r"muon, lr 0\.0[0-9]+, seed \d"))
    expect(tip).to_contain_text("step")
    expect(page.locator("#leaderboard tr.lit")).to_have_count(1)
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()


def test_the_controls_change_what_is_drawn(page) -> None:
    drawn(page, "curve-chart")
    first = data(page, "curve-chart", "data[0].y")
    page.get_by_label("Metric").select_option("train.loss")
    assert data(page, "curve-chart", "data[0].y") != first
    steps = data(page, "curve-chart", "data[0].x")
    page.get_by_label("over", exact=True).select_option("tokens")
    tokens = data(page, "curve-chart", "data[0].x")
    assert [None if s is None else 1024 * s for s in steps] == tokens
    page.get_by_label("over", exact=True).select_option("seconds")
    assert data(page, "curve-chart", "data[0].x") == steps
    page.get_by_label("Colour by").select_option("lr")
    expect(page.locator("#curve-legend")).to_contain_text("0.003")
    raw = data(page, "curve-chart", "data[0].y")
    page.get_by_label("Smoothing").fill("0.9")
    smooth = data(page, "curve-chart", "data.find(trace => trace.opacity > 0.5).y")
    total, norm, expected = 0.0, 0.0, []
    for value in raw[:10]:
        total, norm = 0.9 * total + 0.1 * value, 0.9 * norm + 0.1
        expected.append(total / norm)
    assert smooth[:10] == pytest.approx(expected)
    page.get_by_label("log x").check()
    page.get_by_label("log y").check()
    assert data(page, "curve-chart", "layout.xaxis.type") == "log"
    assert data(page, "curve-chart", "layout.yaxis.type") == "log"


def test_a_legend_hides_its_group(page) -> None:
    drawn(page, "curve-chart")
    count = data(page, "curve-chart", "data.length")
    chip = page.locator("#curve-legend button", has_text="muon")
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "false")
    assert data(page, "curve-chart", "data.length") == count - 1


def test_two_runs_chosen_show_the_keys_in_which_they_differ(page) -> None:
    options = page.get_by_label("A", exact=True).locator("option").all_inner_texts()
    muon = next(text for text in options if "muon, lr 0.01, seed 0" in text)
    adamw = next(text for text in options if "adamw, lr 0.003, seed 1" in text)
    page.get_by_label("A", exact=True).select_option(label=muon)
    page.get_by_label("B", exact=True).select_option(label=adamw)
    keys = page.locator("#comparison th.key").all_inner_texts()
    assert sorted(keys) == [
        "optimizer.optimizer_params.betas",
        "optimizer.optimizer_params.lr",
        "optimizer.optimizer_params.momentum",
        "optimizer.optimizer_params.name",
        "seed",
    ]
    row = page.locator("#comparison tr", has_text="optimizer_params.lr")
    assert row.locator("td").all_inner_texts() == ["0.01", "0.003"]


def test_the_details_of_a_run_copy_the_command_that_repeats_it(page) -> None:
    page.locator(f"{ROWS} .rank button").first.press("Enter")
    dialog = page.locator("#details")
    expect(dialog).to_be_visible()
    command = dialog.locator(".command code").inner_text()
    assert command.startswith("python -m sweeps rerun ")
    dialog.get_by_role("button", name="Copy").click()
    expect(dialog.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == command
    dialog.get_by_text("Whole config").click()
    expect(dialog).to_contain_text("model.n_layer = 2")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_markup_in_names_overrides_and_errors_stays_text(page) -> None:
    scroll_through(page)
    page.get_by_label("Colour by").select_option("optimizer")
    for row in page.locator(ROWS, has_text=HOSTILE).all():
        row.hover()
    page.fill(FILTER, f'"{HOSTILE}"')
    expect(page.locator(ROWS)).to_have_count(1)
    expect(page.locator("#curve-legend")).to_contain_text("<img src=x onerror")
    page.locator(f"{ROWS} .rank button").click()
    expect(page.locator("#details pre").first).to_contain_text("</script><script>")
    page.keyboard.press("Escape")
    page.fill(FILTER, "state=out_of_memory")
    expect(page.locator("#problem-list")).to_contain_text("</script>")
    page.locator(f"{ROWS} .rank button").click()
    expect(page.locator("#details dl")).to_contain_text("<b>bold</b> </textarea>")
    expect(page.locator("#details dl")).to_contain_text("&lt;b&gt;")
    assert page.evaluate("window.__hacked") is None
    assert page.locator("img").count() == 0
    page.keyboard.press("Escape")
    page.fill(FILTER, "")
    drawn(page, "heatmap-chart")
    ticks = page.locator("#heatmap-chart .ytick").all_text_contents()
    assert any("<scr" in text for text in ticks)


def test_the_policy_lets_no_other_script_run(page, window) -> None:
    page.evaluate(
        "() => { const script = document.createElement('script');"
        "script.textContent = 'window.__hacked = 3'; document.body.append(script); }"
    )
    assert page.evaluate("window.__hacked") is None
    assert any("Content Security Policy" in said for said in window.errors)
    window.errors.clear()


def test_no_button_sends_a_chart_anywhere(page) -> None:
    scroll_through(page)
    titles = "[...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title)"
    assert set(page.evaluate(titles)) == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}
    assert data(page, "curve-chart", "_context.plotlyServerURL") == ""


def test_the_heatmap_agrees_with_the_one_of_the_tables(page, small) -> None:
    drawn(page, "heatmap-chart")
    expected = heatmap("lr", "optimizer", sweep="small", store=small.parent / "store")
    cells = data(page, "heatmap-chart", "data[0].z")
    table = expected.astype("Float64").to_numpy(dtype=float, na_value=float("nan"))
    assert len(cells) == len(table)
    for row, wanted in zip(cells, table.tolist(), strict=True):
        mine = [float("nan") if value is None else value for value in row]
        assert mine == pytest.approx(wanted, rel=1e-5, nan_ok=True)


def test_a_range_dragged_on_an_axis_becomes_a_filter(page) -> None:
    drawn(page, "parallel-chart")
    box = page.locator("#parallel-chart .nsewdrag").bounding_box()
    assert box is not None
    right = box["x"] + box["width"]
    page.mouse.move(right - 12, box["y"] + box["height"] - 4)
    page.mouse.down()
    page.mouse.move(right - 2, box["y"] + 0.75 * box["height"], steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Filter the page to them").click()
    expect(page.locator(FILTER)).to_have_value(re.compile(r"^final\.val\.loss >= \d\.\d+ and "))
    assert 0 < page.locator(ROWS).count() < 15


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_the_colours_of_the_reader(page, scheme) -> None:
    page.emulate_media(color_scheme=scheme)
    drawn(page, "curve-chart")
    paper, ink, axis = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        "getComputedStyle(document.querySelector('#curve-chart .ytick text')).fill]"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink, axis)]
    if scheme == "light":
        assert light[0] > 700
        assert max(light[1:]) < 400
    else:
        assert light[0] < 100
        assert min(light[1:]) > 400


@pytest.mark.parametrize("width", [390, 1920])
def test_nothing_makes_the_page_scroll_sideways(page, width) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    scroll_through(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_javascript_it_says_what_it_is(visit, small) -> None:
    with visit(small, java_script_enabled=False) as seen:
        expect(seen.page.locator("body")).to_contain_text("python -m analysis table")
        seen.faultless()


def test_a_run_without_anything_has_a_page_too(visit, alone) -> None:
    with visit(alone) as seen:
        seen.page.locator("#parallel").scroll_into_view_if_needed()
        expect(seen.page.locator("#curve-chart")).to_contain_text("No run has logged a metric")
        expect(seen.page.locator("#parallel-chart")).to_contain_text("No setting varies")
        expect(seen.page.locator(ROWS)).to_have_count(1)
        seen.faultless()


CHARTS = ("curve-chart", "rate-chart", "heatmap-chart", "parallel-chart")


def test_charts_nobody_has_scrolled_to_are_drawn_once_the_page_rests(visit, small) -> None:
    with visit(small) as seen:
        for chart in CHARTS:
            seen.page.wait_for_selector(f"#{chart} .main-svg", state="attached")
        assert seen.page.evaluate("scrollY") == 0
        seen.faultless()


def test_a_thousand_runs_are_there_in_seconds(visit, large) -> None:
    with visit(large) as seen:
        page = seen.page
        ready = float(page.locator("html").get_attribute("data-ready"))
        drawn(page, "curve-chart")
        page.wait_for_selector("html[data-drawn]")
        shown = float(page.locator("html").get_attribute("data-drawn"))
        # A second and a half on an idle machine, five at load 9; tests share theirs.
        assert ready < 10_000
        assert shown < 30_000
        page.get_by_label("Metric").select_option("train.loss")
        expect(page.locator("#curve-note")).to_contain_text("of 100,000 points")
        expect(page.locator("footer")).to_contain_text("full data in the store")
        page.fill(FILTER, "optimizer=muon lr<0.01")
        expect(page.locator("#filterbar")).to_contain_text("100 of 1,000 runs")
        page.fill(FILTER, "")
        expect(page.locator("#table-more")).to_contain_text("The first 100 of 1,000 runs")
        seen.faultless()
