import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import HOSTILE, write_run

from satisfice.measurement import Summary
from satisfice.report import FORMATS, report
from satisfice.report.text import visible
from satisfice.runs.run_folder import RunFolder, read_run
from satisfice.trace import Attempt, Cost, Event, Grade, StopReason, Trace


class Page(HTMLParser):
    """The elements of a page, its scripts and styles, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self._open: tuple[str, dict[str, str | None]] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = (tag, dict(attrs)) if tag in ("script", "style") else None

    def handle_data(self, data: str) -> None:
        if self._open:
            self.raw.append((*self._open, data))
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    @property
    def data(self) -> Any:
        return json.loads(next(text for _, attributes, text in self.raw if attributes.get("id") == "data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", problems=20, samples=2, methods=4, finished=0.6)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "hostile", problems=16, methods=3, hostile=True)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_lands_in_the_run_folder_or_where_asked(run: Path, tmp_path: Path, format: str) -> None:
    assert report(run, format) == run / FORMATS[format]
    path = report(str(run), format, out=tmp_path / "deep" / "file", convention="total")
    assert path == tmp_path / "deep" / "file"
    assert path.stat().st_size > 500
    assert read_run(run).traces, "a report leaves the run readable"


def test_json_is_the_summary(run: Path) -> None:
    summary = Summary.model_validate_json(report(run, "json", convention="thinking").read_text())
    assert summary.convention == "thinking"
    assert len(summary.rows) == 4


def test_nonsense_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no report format 'pdf'; use one of html, md, csv"):
        report(run, "pdf")
    with pytest.raises(ValueError, match="no counting convention 'words'"):
        report(run, convention="words")
    with pytest.raises(ValueError, match="at least one trace"):
        report(run, max_traces=0)
    with pytest.raises(ValueError, match=r"no run\.json"):
        report(tmp_path)


def test_the_page_needs_nothing_from_outside(run: Path) -> None:
    html = report(run).read_text()
    assert not re.findall(r"""(?:src|action|srcset)\s*=|@import|url\((?!#)""", html)
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) == {"http://www.w3.org/2000/svg"}
    links = [attributes for tag, attributes in Page(html).tags if "href" in attributes or "xlink:href" in attributes]
    assert links
    assert all(str(link.get("href") or link.get("xlink:href")).startswith("#") for link in links)


def test_the_policy_allows_this_script_and_style_and_nothing_else(run: Path) -> None:
    parsed = Page(report(run).read_text())
    [policy] = [a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    digests = {
        tag: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, attributes, text in parsed.raw
        if attributes.get("type") != "application/json"
    }
    assert policy == (
        f"default-src 'none'; script-src '{digests['script']}'; style-src '{digests['style']}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not any("style" in attributes for _, attributes in parsed.tags)
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)


def test_an_unfinished_run_says_so(run: Path) -> None:
    text = " ".join(Page(report(run).read_text()).text.split())
    assert "budget-forcing:budget=200 is not finished: 24 of 40 traces are there." in text
    assert "is compared with plain on 24 pairs" in text
    assert "All 144 traces of the run." in text


def test_a_run_that_has_not_begun_has_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", problems=0, methods=2)
    for format in FORMATS:
        report(folder, format)
    assert "No problem has been solved yet." in (folder / "report.html").read_text()


def test_hostile_texts_are_text_everywhere(hostile: Path) -> None:
    html = report(hostile).read_text()
    parsed = Page(html)
    assert [attributes.get("type") for tag, attributes in parsed.tags if tag == "script"] == ["application/json", None]
    assert {"img", "b"}.isdisjoint(tag for tag, _ in parsed.tags)
    assert html.count("</script>") == 2
    assert html.count("</svg>") == 4
    assert "\u202e" not in html
    assert "\x00" not in html
    assert "\u2028" not in html
    assert "49" not in parsed.text.split(), "templates are not run on data"
    assert parsed.text.count(HOSTILE[0]) >= 2, "shown as the model's name"
    thinking = {trace["thinking"]["text"] for trace in parsed.data["traces"]}
    assert thinking == {visible(text) for text in HOSTILE}
    assert "right to left ⟨U+202E⟩ gnorw ⟨U+2066⟩ isolate" in thinking
    assert "null ␀ bell ␇ escape ␛[31m" in thinking


def test_the_viewer_holds_the_same_problems_of_every_method(run: Path) -> None:
    html = report(run, max_traces=5).read_text()
    parsed = Page(html)
    data = parsed.data
    keys = [
        {(trace["problem"], trace["sample"]) for trace in data["traces"] if trace["method"] == method}
        for method in range(4)
    ]
    assert len(keys[0]) == 5
    assert keys[0] == keys[1] == keys[2]
    assert keys[3] < keys[0], "the unfinished one has what is there of them"
    held = [problem["id"] for problem in data["problems"]]
    assert held[0] == "sums/0000"
    assert held[-1] == "sums/0019"
    assert [method["held"] for method in data["methods"]][:3] == [5, 5, 5]
    assert [method["traces"] for method in data["methods"]] == [40, 40, 40, 24]
    assert f"{len(data['traces'])} of the 144 traces of the run" in " ".join(parsed.text.split())


def test_beside_another_run_every_trace_stands_under_its_own_model(run: Path, tmp_path: Path) -> None:
    trained = write_run(tmp_path / "trained", problems=20, samples=2, methods=1)
    config = json.loads((trained / "run.json").read_text())
    (trained / "run.json").write_text(json.dumps({**config, "model": "trained"}))
    page = Page(report(trained, "html", out=tmp_path / "page.html", baseline=run).read_text())
    held = read_run(run)
    names = [f"{method} (lab/reasoner-620k)" for method in held.traces] + ["plain"]
    assert [method["name"] for method in page.data["methods"]] == names
    assert page.data["methods"][0]["file"] == str(run / "traces-plain.jsonl")
    assert page.data["methods"][-1]["file"] == "traces-plain.jsonl"
    counts = [sum(trace["method"] == place for trace in page.data["traces"]) for place in range(len(names))]
    assert counts == [*map(len, held.traces.values()), 40]


def a_run_of_one(folder: Path, **fields: Any) -> Path:
    config = {"model": "lab", "problems": {"name": "one", "n": 1}, "methods": ["plain"], "samples": 1}
    with RunFolder.create_or_open(folder, config) as opened:
        opened.append(Trace(problem_id="p", method="plain", **fields))
    return folder


def test_of_a_very_long_text_the_middle_is_left_out(tmp_path: Path) -> None:
    folder = a_run_of_one(
        tmp_path, thinking="a" * 1_000_000 + "😀" * 50_000, answer="b" * 100_000, grade=Grade(correct=False)
    )
    [trace] = Page(report(folder).read_text()).data["traces"]
    text, (at, omitted) = trace["thinking"]["text"], trace["thinking"]["cut"]
    assert omitted == 950_000
    assert len(text) + omitted == 1_050_000
    assert set(text[:at]) == {"a"}
    assert text[at:] == "😀" * 33_334
    assert trace["answer"] == {"text": "b" * 100_000}


def test_a_page_holds_fewer_traces_of_long_responses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", problems=20, methods=2)
    whole = len(Page(report(folder).read_text()).data["traces"])
    monkeypatch.setattr("satisfice.report.html_page.PAGE_CHARACTERS", 12_000)
    fewer = Page(report(folder).read_text())
    assert whole == 40
    assert 2 <= len(fewer.data["traces"]) < 40
    assert "of the 40 traces" in " ".join(fewer.text.split())


def test_what_stands_in_a_trace_is_told(tmp_path: Path) -> None:
    folder = a_run_of_one(
        tmp_path,
        thinking="so",
        answer="",
        stop="closed by method",
        finished=False,
        events=[Event(at=1, kind="probe", detail={"confidence": 0.123456, "answer": "4", "ids": [1, 2]})],
        grade=Grade(correct=True, extracted="4", expected="4", grader="numeric", note="truncated"),
        cost={"thinking_tokens": 1200, "answer_tokens": 30, "probe_tokens": 12, "seconds": 3.14159},
    )
    [trace] = Page(report(folder).read_text()).data["traces"]
    assert trace["right"] is False, "a truncated response is wrong whatever its grade"
    assert trace["stop"] == (
        "The method closed the thinking after 1,200 tokens. The token limit cut the answer off after 30 tokens."
    )
    assert trace["cost"] == "1,200 thinking + 30 answer tokens, 12 probe, 3.14 s"
    assert trace["events"] == [[1, "probe", {"confidence": "0.1235", "answer": "4", "ids": "[1, 2]"}]]
    assert (trace["grader"], trace["span"], trace["length"]) == ("numeric, truncated", [0, 1200], 1230)


def test_what_failed_is_shown_and_counted(tmp_path: Path) -> None:
    config = {"model": "lab", "problems": {"name": "six", "n": 6}, "methods": ["plain"], "samples": 1}
    with RunFolder.create_or_open(tmp_path, config) as opened:
        for number in range(60):
            error = f"EngineFailed: <b>down</b> {number}"
            attempt = Attempt(problem_id=f"p{number}", method="plain", error=error, cost=Cost(branch_tokens=1234))
            opened.note_failure(attempt)
    page = report(tmp_path).read_text()
    assert "60 responses were tried and could not be had" in " ".join(page.split())
    assert page.count('<p class="error">') == 50
    assert "EngineFailed: &lt;b&gt;down&lt;/b&gt; 0<" in page
    assert "spent 1,234 tokens" in page


def test_every_stop_has_a_sentence(tmp_path: Path) -> None:
    sentences = {
        "marker": "The model closed its thinking after 0 tokens.",
        "closed by method": "The method closed the thinking after 0 tokens.",
        "end of text": "The model ended the whole response inside its thinking, after 0 tokens.",
        "token limit": "The token limit cut the thinking off after 0 tokens.",
        "not opened": "There was no thinking phase.",
    }
    assert set(sentences) == set(get_args(StopReason))
    config = {"model": "lab", "problems": {"name": "six", "n": 6}, "methods": ["plain"], "samples": 1}
    with RunFolder.create_or_open(tmp_path, config) as opened:
        for stop in get_args(StopReason):
            opened.append(Trace(problem_id=stop, method="plain", stop=stop, grade=Grade(correct=False)))
    data = Page(report(tmp_path).read_text()).data
    found = {data["problems"][trace["problem"]]["id"]: trace["stop"] for trace in data["traces"]}
    assert found == sentences


def test_lone_surrogates_in_a_configuration_are_written_out(tmp_path: Path) -> None:
    folder = a_run_of_one(tmp_path, grade=Grade(correct=True))
    config = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**config, "model": "half \ud83d"}))
    for format in FORMATS:
        report(folder, format).read_bytes()
    assert "half ⟨U+D83D⟩ on one" in (folder / "report.html").read_text()


@given(st.text(st.characters(), max_size=60))
def test_visible_text_is_valid_and_changes_nothing_that_can_be_seen(text: str) -> None:
    seen = visible(text)
    seen.encode()
    assert visible(seen) == seen
    if text.isprintable() and not re.search("[\u061c\u200e\u200f]", text):
        assert seen == text


def test_reports_do_not_load_a_model_library() -> None:
    script = "import sys, satisfice.report; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_same_run_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    assert report(run).read_bytes() == report(run, out=tmp_path / "again.html").read_bytes()
