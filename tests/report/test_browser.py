"""The page in a real browser: what runs, what does not, and what clicking and typing do."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import HOSTILE, write_run

from satisfice.report import report
from satisfice.report.text import visible
from satisfice.runs.run_folder import RunFolder
from satisfice.trace import Grade, Trace

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on the path")
    chromedriver = shutil.which("chromedriver")
    if chromedriver is None:
        pytest.skip("no chromedriver on the path (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(write_run(tmp_path_factory.mktemp("runs") / "run", problems=60, methods=5))


@pytest.fixture
def opened(driver: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page, and finds at the end that nothing in it failed or was blocked."""
    from selenium.webdriver.support.wait import WebDriverWait

    def open_page(path: Path, address: str = "", width: int = 1280, mobile: bool = False) -> Any:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": mobile},
        )
        driver.get("about:blank")
        driver.get(f"file://{path}{address}")
        # On a busy machine a large page was seen to count as loaded while its script still ran.
        ready = "return document.documentElement.dataset.ready === 'yes'"
        WebDriverWait(driver, 60).until(lambda page: page.execute_script(ready))
        return driver

    driver.get_log("browser")
    yield open_page
    assert [entry["message"] for entry in driver.get_log("browser")] == []


def all_text(driver: Any, selector: str) -> list[str]:
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)", selector
    )


def choose(driver: Any, name: str, value: str) -> None:
    driver.execute_script(
        "const box = document.getElementById(arguments[0]); box.value = arguments[1];"
        "box.dispatchEvent(new Event('change'))",
        name,
        value,
    )


def keys(driver: Any, *names: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    ActionChains(driver).send_keys(*(getattr(Keys, name) for name in names)).perform()


def count(driver: Any) -> str:
    [text] = all_text(driver, "#count")
    return text


def test_sorting_by_a_click_on_a_heading(opened: Callable[..., Any], run: Path) -> None:
    driver = opened(run)

    def order() -> list[int]:
        return [int(number) for number in all_text(driver, "#methods tbody td:first-child")]

    def direction(name: str) -> Any:
        return driver.execute_script(
            "return [...document.querySelectorAll('#methods thead th')]"
            ".find((heading) => heading.textContent === arguments[0]).getAttribute('aria-sort')",
            name,
        )

    def click(name: str) -> None:
        driver.execute_script(
            "[...document.querySelectorAll('#methods thead button')]"
            ".find((button) => button.textContent === arguments[0]).click()",
            name,
        )

    assert order() == [1, 2, 3, 4, 5]
    assert direction("#") == "ascending"
    click("accuracy")
    accuracies = [
        float(value) for value in driver.execute_script(
            "return [...document.querySelectorAll('#methods tbody tr')].map((row) => row.cells[2].dataset.value)"
        )
    ]  # fmt: skip
    assert accuracies == sorted(accuracies, reverse=True)
    assert (direction("accuracy"), direction("#")) == ("descending", None)
    click("accuracy")
    assert direction("accuracy") == "ascending"
    # Numbers, not texts: 19 tokens come before 171; and the baseline, which saves nothing, is last both ways.
    click("tokens in all")
    click("tokens in all")
    assert order()[0] == 5
    for _ in range(2):
        click("saving")
        assert order()[-1] == 1
    click("method")
    assert all_text(driver, "#methods tbody th a") == sorted(all_text(driver, "#methods tbody th a"))
    again = opened(run, "#" + driver.current_url.split("#")[1])
    assert all_text(again, "#methods thead [aria-sort]") == ["method"]


def test_filters_narrow_the_list(opened: Callable[..., Any], run: Path) -> None:
    driver = opened(run)
    assert count(driver) == "1–50 of 300"
    assert len(all_text(driver, "#list li")) == 50
    choose(driver, "method", "no-thinking")
    assert count(driver) == "1–50 of 60"
    driver.find_element("id", "later").click()
    assert count(driver) == "51–60 of 60"
    choose(driver, "show", "right")
    right = int(count(driver).split(" of ")[1])
    assert set(all_text(driver, "#list li span:first-child")) == {"✓"}
    choose(driver, "show", "wrong")
    assert set(all_text(driver, "#list li span:first-child")) == {"✗"}
    assert right + int(count(driver).split(" of ")[1]) == 60
    choose(driver, "show", "lost")
    lost = int(count(driver).split(" of ")[1])
    choose(driver, "method", "plain")
    assert count(driver) == "no trace fits"
    assert all_text(driver, "#detail") == ["No trace fits."]
    choose(driver, "show", "truncated")
    assert all(item.rstrip().endswith("⊣") for item in all_text(driver, "#list .count"))
    assert all_text(driver, "#list .count")
    # What the viewer calls lost is what the table counts as discordant.
    summary = json.loads(report(run.parent, "json").read_text())
    assert lost == summary["rows"][4]["only_baseline_correct"] > 0


def test_search_finds_in_thinking_and_in_names(opened: Callable[..., Any], run: Path) -> None:
    driver = opened(run, "#method=plain&q=SUMS%2F0042")
    assert count(driver) == "1–1 of 1"
    assert driver.find_element("id", "search").get_property("value") == "SUMS/0042"
    box = driver.find_element("id", "search")
    box.clear()
    box.send_keys("Alternatively")
    time.sleep(0.4)
    found = int(count(driver).split(" of ")[1])
    assert 0 < found < 60
    assert "Alternatively" in all_text(driver, "#detail .thinking")[0]
    box.send_keys(" no such text")
    time.sleep(0.4)
    assert count(driver) == "no trace fits"


def test_arrow_keys_go_through_the_list(opened: Callable[..., Any], run: Path) -> None:
    driver = opened(run, "#method=plain&show=wrong")
    ids = all_text(driver, "#list .id")

    def current() -> str:
        [text] = all_text(driver, "#list [aria-current] .id")
        assert all_text(driver, "#detail .problem h4 span")[0] == f"{text}, sample 0"
        return text

    assert current() == ids[0]
    keys(driver, "ARROW_RIGHT", "ARROW_RIGHT")
    assert current() == ids[2]
    keys(driver, "ARROW_LEFT")
    assert current() == ids[1]
    driver.execute_script("document.querySelector('#list [aria-current]').focus()")
    keys(driver, "ARROW_DOWN", "ARROW_DOWN")
    assert current() == ids[3]
    assert driver.execute_script("return document.activeElement.textContent").startswith("✗" + ids[3])
    # In a field the arrows move the cursor.
    driver.execute_script("document.getElementById('search').focus()")
    keys(driver, "ARROW_RIGHT")
    assert current() == ids[3]
    keys(driver, "TAB")
    driver.execute_script("document.activeElement.blur()")
    keys(driver, *["ARROW_LEFT"] * 6)
    assert current() == ids[0]


def test_the_list_turns_its_page_with_the_keys(opened: Callable[..., Any], run: Path) -> None:
    driver = opened(run)
    driver.find_elements("css selector", "#list button")[49].click()
    keys(driver, "ARROW_DOWN")
    assert count(driver) == "51–100 of 300"
    assert all_text(driver, "#list [aria-current] .id") == ["sums/0010"]


def test_an_address_leads_to_a_trace_beside_another(opened: Callable[..., Any], run: Path) -> None:
    driver = opened(run, "#trace=deer%3Atau%3D0.95/sums%2F0012/0&beside=plain")
    assert all_text(driver, "#detail h3") == ["deer:tau=0.95", "plain"]
    assert all_text(driver, "#detail .problem h4 span")[0] == "sums/0012, sample 0"
    assert driver.execute_script("return scrollY") > 500, "it goes to the viewer"
    assert len(all_text(driver, "#detail article:first-child .events li")) == 3
    assert len(all_text(driver, "#detail article:first-child .timeline .tick")) == 3
    assert all_text(driver, "#detail article:first-child .thinking .chip") == ["probe"] * 3
    driver.find_elements("css selector", ".events button")[2].click()
    assert all_text(driver, ".chip.flash") == ["probe"]
    keys(driver, "ARROW_RIGHT")
    address = driver.current_url.split("#")[1]
    assert "trace=budget-forcing%3Abudget%3D200/sums%2F0012/0" in address
    again = opened(run, f"#{address}")
    assert all_text(again, "#detail h3") == ["budget-forcing:budget=200", "plain"]
    missing = opened(run, "#trace=plain/none/7")
    assert all_text(missing, "#detail") == ["The trace that the address names is not in this page."]
    broken = opened(run, "#trace=%E0%A4%A&q=%&show=nonsense&sort=x")
    assert count(broken) == "1–50 of 300"


def test_a_method_in_the_table_leads_to_its_traces(opened: Callable[..., Any], run: Path) -> None:
    driver = opened(run)
    driver.execute_script("document.querySelectorAll('#methods tbody th a')[3].click()")
    time.sleep(0.2)
    assert count(driver) == "1–50 of 60"
    assert set(all_text(driver, "#list .of")) == {"budget-forcing:budget=200"}


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_only_the_table_scrolls_sideways(opened: Callable[..., Any], run: Path, width: int) -> None:
    driver = opened(run, "#trace=plain/sums%2F0012/0&beside=deer%3Atau%3D0.95", width, mobile=width < 500)
    page_width, window_width, table, frame = driver.execute_script(
        "const box = document.querySelector('.scroll');"
        "return [document.documentElement.scrollWidth, innerWidth, box.scrollWidth, box.clientWidth]"
    )
    assert page_width <= window_width == width
    assert table > frame
    shown = driver.execute_script(
        "return ['wide', 'narrow'].map((name) =>"
        "getComputedStyle(document.querySelector(`figure.${name}`)).display !== 'none')"
    )
    assert shown == [width > 760, width <= 760]


def test_hostile_texts_are_shown_and_never_run(opened: Callable[..., Any], tmp_path: Path) -> None:
    path = report(write_run(tmp_path / "run", problems=16, methods=2, hostile=True))
    driver = opened(path)
    assert "owned" not in driver.title.removesuffix("satisfice").replace(HOSTILE[0], "").replace(HOSTILE[1], "")
    seen = set()
    for _ in range(48):
        seen |= set(all_text(driver, "#detail .answer"))
        keys(driver, "ARROW_RIGHT")
    assert seen == {visible(text) for text in HOSTILE} | ({"nothing"} & seen)
    assert driver.title.startswith(HOSTILE[0]), "no attack set another title"
    assert driver.execute_script("return document.querySelectorAll('script, img, b, iframe, object').length") == 2
    assert "<b>bad</b>:$x_1$='\"--></svg>" in all_text(driver, "figure.wide svg text")


def test_a_line_of_a_megabyte_stays_usable(opened: Callable[..., Any], tmp_path: Path) -> None:
    config = {"model": "lab", "problems": {"name": "one", "n": 1}, "methods": ["plain"], "samples": 1}
    with RunFolder.create_or_open(tmp_path, config) as folder:
        folder.append(Trace(problem_id="p", method="plain", thinking="x" * 1_000_000, grade=Grade(correct=True)))
    driver = opened(report(tmp_path))
    assert all_text(driver, ".cut") == ["900,000 characters are left out here; the whole text is in traces-plain.jsonl"]
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 1280


def test_a_run_that_has_not_begun_opens(opened: Callable[..., Any], tmp_path: Path) -> None:
    driver = opened(report(write_run(tmp_path / "run", problems=0, methods=2)))
    assert count(driver) == "no trace fits"
    assert all_text(driver, "#detail") == ["No trace fits."]


def test_the_policy_stops_what_would_get_past_the_escaping(driver: Any, tmp_path: Path, run: Path) -> None:
    path = tmp_path / "tampered.html"
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    path.write_text(run.read_text().replace("</header>", f"{attack}</header>"))
    driver.get(f"file://{path}")
    time.sleep(0.3)
    assert driver.title == "lab/reasoner-620k on two-digit sums · satisfice"
    messages = " ".join(entry["message"] for entry in driver.get_log("browser"))
    assert "Content Security Policy" in messages


def test_ten_thousand_traces_stay_quick(opened: Callable[..., Any], tmp_path: Path) -> None:
    path = report(write_run(tmp_path / "run", problems=2500, methods=4), max_traces=2500)
    driver = opened(path)
    assert count(driver) == "1–50 of 10,000"
    milliseconds = driver.execute_script(
        "const start = performance.now();"
        "for (let step = 0; step < 10; step += 1)"
        "  document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));"
        "return (performance.now() - start) / 10"
    )
    assert milliseconds < 150
