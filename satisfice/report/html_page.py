"""The report as one HTML page that needs nothing but a browser.

What models wrote is hostile until proven otherwise. It reaches the page in two ways only: escaped by the template, or
as JSON that the page's script puts into text nodes. The page's policy lets run that one script, by its digest, and
lets nothing be fetched from anywhere.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from satisfice import __version__
from satisfice.measurement import Columns, Summary, is_correct
from satisfice.report.figures import accuracy_cost_figure, lengths_figure, to_inline
from satisfice.report.findings import COUNTED, headline
from satisfice.report.tables import columns
from satisfice.report.text import visible
from satisfice.runs.run_folder import Run
from satisfice.trace import Attempt, Trace

MAX_TRACES = 400
"""How many traces of each method a page holds, unless told otherwise."""

SHOWN_FAILURES = 50
"""Attempts that failed which a page lists at most."""

PAGE_CHARACTERS = 24_000_000
"""How many characters of responses a page holds in all: more, and browsers on phones give up."""

TEXT_CHARACTERS = 100_000
"""Of a longer text the middle is left out of the page."""


def page(run: Run, summary: Summary, max_traces: int = MAX_TRACES) -> str:
    """The page of a run.

    Args:
        run: the run.
        summary: its table.
        max_traces: how many traces of each method the viewer holds at most. Where a run has more, the same problems
            and samples are taken for all methods, evenly over the run; the page says how many of how many.
    """
    wide = to_inline(accuracy_cost_figure(summary), "wide", "Accuracy against cost of each method")
    narrow = to_inline(accuracy_cost_figure(summary, narrow=True), "narrow", "Accuracy against cost of each method")
    lengths = to_inline(lengths_figure(summary, run.traces), "lengths", "Thinking lengths of each method")
    short = to_inline(lengths_figure(summary, run.traces, narrow=True), "short", "Thinking lengths of each method")

    environment = Environment(
        loader=PackageLoader("satisfice.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters["breakable"] = _breakable

    def source(name: str) -> str:
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    script = source("page.js")
    style = "\n".join([source("page.css"), wide.css, narrow.css, lengths.css, short.css])
    chosen = _chosen(run, max_traces)
    failed = [attempt for method in run.traces for attempt in run.failed(method)]
    return environment.get_template("page.html").render(
        policy=(
            f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=Markup(style),
        script=Markup(script),
        data=Markup(_json_for_script(_viewer_data(run, summary, chosen))),
        wide=Markup(wide.markup),
        narrow=Markup(narrow.markup),
        lengths=Markup(lengths.markup),
        short=Markup(short.markup),
        config=run.config,
        summary=summary,
        headline=headline(summary),
        columns=columns(summary),
        facts=_facts(run.config, summary),
        counted=COUNTED[summary.convention],
        failed=[_failure(attempt) for attempt in failed[:SHOWN_FAILURES]],
        failed_count=len(failed),
        embedded=sum(map(len, chosen.values())),
        traces=sum(map(len, run.traces.values())),
        version=__version__,
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json_for_script(data: Any) -> str:
    """JSON that cannot end the script element it stands in, nor start a comment or another script in it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _breakable(text: str) -> Markup:
    """Text with long spellings in it, which a narrow column breaks between their parts and not inside of a word."""
    return Markup("<wbr>").join(re.split(r"(?<=[:,=-])", visible(text)))


def _facts(config: Mapping[str, Any], summary: Summary) -> list[tuple[str, str]]:
    """What was run, as pairs of a name and a value."""
    sampling = dict(config.get("sampling") or {})
    cap = sampling.pop("max_tokens", None)
    samples = config.get("samples", 1)
    facts = [
        ("model", summary.model),
        ("attention", "" if summary.attention == "dense" else summary.attention),
        ("problems", f"{summary.problems_n:,} of {summary.problems}" if summary.problems_n else summary.problems),
        ("samples", f"{samples:,} a problem"),
        ("token limit", "none" if cap is None else f"{cap:,} a response"),
        ("sampling", ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in sampling.items() if value)),
        ("seed", str(config.get("seed", ""))),
        ("device", str(config.get("device", ""))),
        ("begun", str(config.get("created", "")).replace("T", " ")[:16]),
    ]
    return [(name, value) for name, value in facts if value]


def _chosen(run: Run, max_traces: int) -> dict[str, list[Trace]]:
    """The traces that the page holds: all, or the same problems and samples for all methods, evenly over the run.

    Only these are read; which they are is decided by the columns of the run.
    """
    columns = {method: Columns.of(traces) for method, traces in run.traces.items()}
    keys = sorted({row for held in columns.values() for row in held.rows()})
    characters = sum(int(np.minimum(held.count("characters"), 2 * TEXT_CHARACTERS).sum()) for held in columns.values())
    fitting = len(keys) if characters <= PAGE_CHARACTERS else int(len(keys) * PAGE_CHARACTERS / characters)
    count = min(len(keys), max_traces, max(1, fitting))
    wanted = {keys[place] for place in np.linspace(0, len(keys) - 1, count).round().astype(int)}
    return {
        method: [traces[place] for place, row in enumerate(columns[method].rows()) if row in wanted]
        for method, traces in run.traces.items()
    }


def _viewer_data(run: Run, summary: Summary, chosen: Mapping[str, Sequence[Trace]]) -> dict[str, Any]:
    """What the viewer's script reads; page.js names the same keys. Traces point to methods and problems by place."""
    methods = list(run.traces)
    problems: dict[str, int] = {}
    listed: list[dict[str, str]] = []
    traces = []
    # By problem, then by method: going through the list compares the methods on one problem after the other.
    held = [(trace, place) for place, method in enumerate(methods) for trace in chosen[method]]
    for trace, place in sorted(held, key=lambda pair: (pair[0].problem_id, pair[0].sample)):
        if trace.problem_id not in problems:
            problems[trace.problem_id] = len(problems)
            listed.append(
                {"id": visible(trace.problem_id), "prompt": visible(trace.prompt), "gold": visible(trace.gold)}
            )
        traces.append({"method": place, "problem": problems[trace.problem_id], **_trace_data(trace)})
    return {
        "baseline": methods.index(summary.baseline),
        "methods": [
            {
                "name": visible(method),
                "file": run.files[method],
                "held": len(chosen[method]),
                "traces": len(run.traces[method]),
            }
            for method in methods
        ],
        "problems": listed,
        "traces": traces,
    }


def _trace_data(trace: Trace) -> dict[str, Any]:
    cost = trace.cost
    return {
        "sample": trace.sample,
        "seed": trace.seed,
        "right": is_correct(trace),
        "truncated": trace.truncated,
        "thinking": _text(trace.thinking),
        "answer": _text(trace.answer),
        "tokens": [cost.thinking_tokens, cost.answer_tokens],
        "span": list(trace.thinking_span) if trace.response_ids else [0, cost.thinking_tokens],
        "length": len(trace.response_ids) or cost.retained_tokens,
        "stop": _stop_sentence(trace),
        "events": [
            [event.at, visible(event.kind), {visible(key): _shown(value) for key, value in event.detail.items()}]
            for event in trace.events
        ],
        "cost": _cost_sentence(trace),
        "extracted": visible(trace.grade.extracted) if trace.grade and trace.grade.extracted is not None else None,
        "expected": visible(trace.expected),
        "grader": visible(", ".join(filter(None, (trace.grade.grader, trace.grade.note)))) if trace.grade else "",
    }


def _failure(attempt: Attempt) -> dict[str, Any]:
    """A response that could not be had, for the page."""
    cost = attempt.cost
    return {
        "method": attempt.method,
        "problem": attempt.problem_id,
        "sample": attempt.sample,
        "spent": f"{attempt.at.replace('T', ' ')[:16]}; spent {cost.total_tokens:,} tokens, {cost.seconds:.2f} s",
        "error": visible(attempt.error),
    }


def _text(text: str) -> dict[str, Any]:
    """A text for the page; of a very long one the middle is left out, and "cut" tells where, and how much."""
    if len(text) <= TEXT_CHARACTERS:
        return {"text": visible(text)}
    head, tail = visible(text[: TEXT_CHARACTERS * 2 // 3]), visible(text[-TEXT_CHARACTERS // 3 :])
    return {"text": head + tail, "cut": [len(head.encode("utf-16-le")) // 2, len(text) - TEXT_CHARACTERS]}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return visible(value if isinstance(value, str) else json.dumps(value, default=str))


def _stop_sentence(trace: Trace) -> str:
    count = f"{trace.cost.thinking_tokens:,} tokens"
    sentence = {
        "marker": f"The model closed its thinking after {count}.",
        "closed by method": f"The method closed the thinking after {count}.",
        "end of text": f"The model ended the whole response inside its thinking, after {count}.",
        "token limit": f"The token limit cut the thinking off after {count}.",
        "not opened": "There was no thinking phase.",
    }[trace.stop]
    if trace.truncated and trace.stop != "token limit":
        sentence += f" The token limit cut the answer off after {trace.cost.answer_tokens:,} tokens."
    return sentence


def _cost_sentence(trace: Trace) -> str:
    cost = trace.cost
    parts = [f"{cost.thinking_tokens:,} thinking + {cost.answer_tokens:,} answer tokens"]
    others = {
        "forced": cost.forced_tokens,
        "probe": cost.probe_tokens,
        "branch": cost.branch_tokens,
        "outline": cost.outline_tokens,
        "prefilled": cost.prefilled_tokens,
        "cached": cost.cached_tokens,
    }
    parts += [f"{count:,} {name}" for name, count in others.items() if count]
    if cost.forward_passes:
        parts.append(f"{cost.forward_passes:,} forward passes")
    if cost.seconds:
        parts.append(f"{cost.seconds:.3g} s")
    return ", ".join(parts)
