from __future__ import annotations

import asyncio
import threading

import attrs
import pytest

import art_core as art
from art_core.testing.sick_runs import sick_run

expect = pytest.importorskip("playwright.sync_api", reason="see conftest.py").expect
pytestmark = pytest.mark.browser
TABS = ("Curves", "Costs", "Trajectories", "Evaluations", "Live", "About")


def cells(page, number):
    return [
        row.locator("th, td").nth(number).inner_text() for row in page.locator("tbody tr").all()
    ]


def in_a_thread(work):
    """Run a coroutine beside playwright, which has a loop in this thread."""
    errors = []

    def run():
        try:
            asyncio.run(work)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []


def test_the_runs_are_listed_and_filtered(served, opened):
    found = opened(served.url)
    page = found.page
    page.wait_for_selector("tbody tr")
    assert len(cells(page, 0)) == 3
    page.get_by_label("Filter").fill("inbox step>=20")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert cells(page, 0) == ["inbox/agent-001"]
    assert "q=inbox%20step%3E%3D20" in page.url
    page.reload()
    page.wait_for_selector("tbody tr")
    assert cells(page, 0) == ["inbox/agent-001"]
    page.get_by_label("Filter").fill("no/such>1")
    assert "no column 'no/such'" in page.locator(".problem").inner_text()
    assert [line for line in found.messages if "status of 400" not in line] == []
    found.messages.clear()


def test_a_heading_sorts_the_better_values_first_and_then_last(served, opened):
    page = opened(f"{served.url}#/leaderboard").page
    heading = page.get_by_role("button", name="loss/train")
    heading.click()
    page.wait_for_selector("th[aria-sort=ascending] >> text=loss/train")
    column = page.locator("thead th").all_inner_texts().index("loss/train ▲")
    values = [float(text) for text in cells(page, column)]
    assert values == sorted(values)
    page.keyboard.press("Enter")  # the heading has the focus still
    page.wait_for_selector("th[aria-sort=descending] >> text=loss/train")
    assert [float(text) for text in cells(page, column)] == values[::-1]


def test_the_leaderboard_has_columns_a_matrix_and_csv(served, opened):
    page = opened(f"{served.url}#/leaderboard").page
    page.wait_for_selector("tbody tr")
    page.get_by_text("Columns (").click()
    page.get_by_label("find a column").fill("grad_norm")
    page.get_by_label("loss/grad_norm", exact=True).check()
    page.wait_for_selector("thead >> text=loss/grad_norm")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV", exact=True).click()
    assert download.value.path().read_text().count("\n") == 4
    page.get_by_label("Matrix of").select_option("reward/mean")
    page.wait_for_selector("thead >> text=maths")
    assert cells(page, 0) == ["agent-001", "agent-002"]


def test_curves_switch_the_axis_smooth_zoom_and_have_bands_of_attempts(served, opened):
    page = opened(served.url).page
    page.get_by_role("link", name="inbox/agent-001").click()
    page.wait_for_selector("figure canvas")
    figures = page.locator("figure").count()
    assert figures >= 6
    for value in ("wall", "tokens", "usd", "step"):
        page.get_by_label("Over").select_option(value)
        expect(page.locator(".u-legend .u-label").first).to_have_text(value)
        assert page.locator("figure canvas").count() == figures
    page.get_by_label("Smoothing").fill("0.8")
    page.wait_for_selector(".u-legend >> text=as logged", state="attached")
    about = page.locator("figure .plot").first.get_attribute("aria-label")
    assert "reward/mean" in about
    assert "highest" in about
    page.locator("figure summary").first.click()
    assert page.locator("figure tbody").locator("tr").count() > 20


def test_a_long_curve_is_thinned_and_zoomed_into(long_run, browser, serve, opened):
    found = opened(serve(long_run).url)
    page = found.page
    page.get_by_role("link", name="p/long").click()
    about = page.locator("figure .plot").first
    assert "5,000 values" in about.get_attribute("aria-label")
    assert "highest 9" in about.get_attribute("aria-label")
    page.wait_for_selector("figure canvas")
    box = page.locator(".u-over").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 60, steps=5)
    page.mouse.up()
    expect(page.get_by_role("button", name="whole curve")).to_be_visible()
    asked = next(url for url in found.requests if "first=" in url)
    first = int(asked.partition("first=")[2].partition("&")[0])
    assert 400 <= first <= 600
    page.get_by_role("button", name="whole curve").click()
    expect(page.get_by_role("button", name="whole curve")).to_have_count(0)


def test_several_runs_lie_over_each_other(served, opened):
    page = opened(served.url).page
    page.get_by_label("overlay inbox/agent-001").check()
    page.get_by_label("overlay inbox/agent-002").check()
    page.get_by_role("link", name="Overlay 2 runs").click()
    page.wait_for_selector("figure canvas")
    labels = page.locator("figure").first.locator(".u-legend .u-label").all_inner_texts()
    assert {"inbox/agent-001", "inbox/agent-002"} <= set(labels)


def test_a_trajectory_opens_with_its_tokens_and_failures(served, opened):
    page = opened(served.url).page
    page.get_by_role("link", name="inbox/agent-001").click()
    page.get_by_role("link", name="Trajectories").click()
    page.get_by_role("button", name="attempt 3 of question-1").click()
    page.wait_for_selector("article >> text=question-1, attempt 3")
    assert page.locator(".message.tool").inner_text().startswith("tool")
    page.locator(".token").last.hover()
    assert "log-prob -" in page.locator(".readout").last.inner_text()
    page.locator(".tokens").last.press("ArrowLeft")
    assert "id " in page.locator(".readout").last.inner_text()
    page.get_by_text("failed (raised): TimeoutError").first.click()
    assert "mail server did not answer" in page.locator(".failure pre").first.inner_text()
    page.get_by_role("button", name="Keep beside").click()
    page.get_by_role("button", name="attempt 1 of question-2").click()
    expect(page.locator("article")).to_have_count(2)
    page.get_by_label("search the conversations").fill("invoice 2-17")
    page.get_by_role("button", name="Find").click()
    page.wait_for_selector(".hits li")
    page.locator(".hits button.link").last.click()
    page.wait_for_selector("article >> text=question-2")


def test_a_run_is_exported_as_one_file_that_asks_for_nothing(served, opened, tmp_path):
    page = opened(served.url).page
    page.get_by_role("link", name="inbox/agent-001").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Export as HTML").click()
    file = tmp_path / "run.html"
    download.value.save_as(file)
    found = opened(file.as_uri())
    page = found.page
    page.wait_for_selector("figure canvas")
    page.get_by_label("Over").select_option("usd")
    for tab in ("Costs", "Evaluations", "About", "Trajectories"):
        page.get_by_role("link", name=tab).click()
        page.wait_for_selector(f"a[aria-current=page] >> text={tab}")
    page.get_by_role("button", name="attempt 2 of question-3").click()
    page.wait_for_selector("article >> text=question-3, attempt 2")
    assert found.requests == [file.as_uri()]


@pytest.fixture
def found_markup():
    return """() => [window.evil, ...document.querySelectorAll(
        'img, iframe, b, i, script:not([src]):not([type="application/json"])')]
        .filter((each) => each !== undefined).length"""


def test_markup_in_any_field_stays_text(hostile, browser, serve, opened, found_markup, tmp_path):
    server = serve(hostile)
    page = opened(server.url).page
    page.wait_for_selector("tbody tr")
    assert "<img" in page.locator("tbody").inner_text()
    assert page.evaluate(found_markup) == 0
    page.locator("tbody a").click()
    for tab in TABS:
        page.get_by_role("link", name=tab, exact=True).click()
        page.wait_for_selector(f"a[aria-current=page] >> text={tab}")
        page.wait_for_load_state("networkidle") if tab != "Live" else page.wait_for_selector("td")
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.evaluate(found_markup) == 0
        if tab == "Trajectories":
            assert page.locator(".text", has_text="<script>").count() > 3
            page.get_by_label("search the conversations").fill("<img")
            page.get_by_role("button", name="Find").click()
            page.wait_for_selector(".hits li")
            assert page.evaluate(found_markup) == 0
    with page.expect_download() as download:
        page.get_by_role("link", name="Export as HTML").click()
    file = tmp_path / "run.html"
    download.value.save_as(file)
    page = opened(file.as_uri()).page
    for tab in ("Costs", "Trajectories", "About"):
        page.get_by_role("link", name=tab, exact=True).click()
        page.wait_for_timeout(200)
    assert page.evaluate("window.evil") is None
    assert page.evaluate("document.querySelectorAll('img, iframe, b, i').length") == 0


def test_rows_arrive_live_also_after_the_server_was_away(tmp_path, browser, serve, opened):
    state = {}

    async def log(*steps):
        model = art.Model(name="m", project="p", sinks=[], base_path=tmp_path)
        for step in steps:
            await model.log([], split="train", step=step, metrics={"loss/train": float(step)})
        state["model"] = await model.close()

    in_a_thread(log(1))
    server = serve(tmp_path)
    found = opened(server.url)
    page = found.page
    page.get_by_role("link", name="p/m").click()
    page.get_by_role("link", name="Live").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    in_a_thread(log(2))
    expect(page.locator("tbody tr")).to_have_count(2)
    server.stop()
    page.wait_for_selector("text=reconnecting")
    in_a_thread(log(3, 4))
    server.start()
    expect(page.locator("tbody tr")).to_have_count(4)
    assert cells(page, 0) == ["4", "3", "2", "1"]
    found.messages[:] = [
        line
        for line in found.messages
        if "ERR_CONNECTION" not in line and "ERR_INCOMPLETE" not in line
    ]


def test_the_page_can_be_used_with_the_keyboard(served, opened):
    page = opened(served.url).page
    page.wait_for_selector("tbody tr")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the second page
    page.wait_for_selector("h1 >> text=Leaderboard")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize(
    "address", ["#/runs", "#/leaderboard", "curves", "costs", "attempts", "live"]
)
def test_everything_that_can_be_used_has_a_name(served, opened, address):
    page = opened(served.url).page
    page.wait_for_selector("tbody tr")
    if not address.startswith("#"):
        href = page.locator("tbody a").first.get_attribute("href")
        address = href.replace("curves", address)
    page.goto(served.url + address)
    page.wait_for_selector("main h1")
    page.wait_for_timeout(300)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('a, button, input, select, summary, [role=region]')]
        .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))
        .map((e) => e.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(served, opened, scheme):
    page = opened(served.url, color_scheme=scheme).page
    page.wait_for_selector("tbody tr")
    for selector in ("h1", "tbody a", ".pill", "thead th", ".field span"):
        assert contrast(page, selector) >= 4.5, selector
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Theme: light").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"


def contrast(page, selector):
    """Return the ratio of WCAG between the colours of a text and of what is behind it."""
    return page.evaluate(
        """(selector) => {
          const parts = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) =>
            v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
          const element = document.querySelector(selector);
          let behind = element;
          let back = parts(getComputedStyle(behind).backgroundColor);
          while (back.length === 4 && back[3] === 0) {
            behind = behind.parentElement;
            back = parts(getComputedStyle(behind).backgroundColor);
          }
          const front = light(parts(getComputedStyle(element).color));
          const [a, b] = [front, light(back)].sort((x, y) => y - x);
          return (a + 0.05) / (b + 0.05);
        }""",
        selector,
    )


def test_a_finding_of_the_doctor_stands_above_the_curves_and_at_its_onset(tmp_path, serve, opened):
    sick = sick_run("entropy-collapse", 3)
    signal = {"signal/cum/learned": 3.0, "signal/cum/wasted/no_spread": 1.0}
    directory = tmp_path / "demo" / "models" / "sick"
    directory.mkdir(parents=True)
    *rows, last = sick.rows
    rows.append(attrs.evolve(last, metrics=last.metrics | signal | {"costs/cum/all": 4.0}))
    (directory / "history.jsonl").write_bytes(b"".join(row.to_line() for row in rows))
    page = opened(serve(tmp_path).url).page
    page.get_by_role("link", name="demo/sick").click()
    page.wait_for_selector(".findings p")
    text = page.locator(".findings p").inner_text()
    assert text.startswith("entropy-collapse: from step ") and ", $" in text
    assert "Lower learning_rate, or give entropy_coef." in text
    page.wait_for_selector("figure canvas")
    marked = page.locator(".plot[aria-label*='entropy-collapse from step']")
    assert marked.count() == 1
    assert marked.get_attribute("aria-label").startswith("loss/entropy")
    page.get_by_role("link", name="Costs").click()
    page.wait_for_selector("text=What the dollars taught")
    table = page.get_by_role("table", name="Dollars of signal")
    assert [cell.split()[0] for cell in table.locator("tbody tr").all_inner_texts()] == [
        "learned",
        "wasted/no_spread",
    ]
