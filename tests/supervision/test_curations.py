"""What each curation selects, in closed values; and that every trace ends in a row or in a drop."""

import asyncio
import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervision.sampled import problem, trace

from satisfice.supervision import CURATIONS, CurationError, Drop, Reason, parse_curation
from satisfice.supervision.methods.reweighting import MixRatio, PoolReader, Reference
from satisfice.thinking import FAMILIES


def rows(items):
    return [item for item in items if not isinstance(item, Drop)]


def reasons(items):
    return Counter(item.reason for item in items if isinstance(item, Drop))


def lengths(items):
    return [row.response.tokens for row in rows(items)]


TRACES = st.lists(
    st.one_of(
        st.integers(1, 40),
        st.integers(-40, -1),
        st.builds(lambda n: trace(n, finished=False), st.integers(1, 40)),
        st.builds(lambda n: trace(n, grade=None), st.integers(1, 40)),
        st.builds(lambda n: trace(n, thinking="x </think> y"), st.integers(1, 40)),
        st.builds(lambda n: trace(n, thinking="no number", answer="two"), st.integers(1, 40)),
        st.builds(lambda n: trace(n, prompt="Another?"), st.integers(1, 40)),
        st.just(trace(0)),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("name", list(CURATIONS))
@given(traces=TRACES)
def test_every_trace_ends_in_a_row_or_in_one_drop(name, traces):
    sampled = problem(*traces)
    items = CURATIONS[name]().items(sampled)
    used = {place for row in rows(items) for place in row.places}
    dropped = [item.place for item in items if isinstance(item, Drop)]
    assert len(dropped) == len(set(dropped))
    assert used.isdisjoint(dropped)
    assert used | set(dropped) == set(range(len(traces)))
    # What the limit cut off is an example of nothing.
    assert all(sampled.traces[place].finished for place in used)


@pytest.mark.parametrize("name", [name for name, kind in CURATIONS.items() if kind.loss != "offline-clip"])
@given(traces=TRACES)
def test_only_right_answers_are_imitated(name, traces):
    sampled = problem(*traces)
    assert all(sampled.traces[row.response.place].correct for row in rows(CURATIONS[name]().items(sampled)))


# -- spelling


def test_spelling_there_and_back():
    assert str(parse_curation("tokensqueeze:alpha=0.3,window=256,divergence=mean")) == (
        "tokensqueeze:alpha=0.3,window=256,divergence=mean"
    )
    assert str(parse_curation("pir")) == "pir"
    text = 'length-levels:instruction_short="Be short, please."'
    assert str(parse_curation(text)) == text
    assert parse_curation(str(parse_curation(text))) == parse_curation(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tokensqueze", "did you mean 'tokensqueeze'"),
        ("tokensqueeze:alfa=1", "did you mean 'alpha'"),
        ("tokensqueeze:alpha=1.5", "alpha is 1.5; it must be"),
        ("tokensqueeze:window=0", "window is 0; it must be"),
        ("pir:rounding=up", "rounding is"),
        ("pir:most=0", "most is 0"),
        ("length-levels:short=0.5,medium=0.5", "rising quantiles"),
        ('length-levels:instruction_short="Think normally."', "must differ"),
        ("reweighting:easy=0.5,hard=0.5", "easy must be the larger"),
        ("sft:most", "name=value"),
    ],
)
def test_what_cannot_be_read_is_refused(text, says):
    with pytest.raises(CurationError, match=says):
        parse_curation(text)


# -- what all of them do first


def test_traces_of_another_prompt_or_a_second_time():
    mixed = problem(trace(5), trace(6, prompt="What is 1+2?", sample=1))
    assert reasons(parse_curation("sft").items(mixed)) == {Reason.OTHER_PROMPT: 2}
    ids = problem(trace(5, prompt_ids=[1]), trace(6, prompt_ids=[2], sample=1))
    assert reasons(parse_curation("sft").items(ids)) == {Reason.OTHER_PROMPT: 2}
    again = problem(trace(9), trace(5, sample=1), trace(5, sample=1), trace(7, sample=2))
    items = parse_curation("shortest-correct").items(again)
    assert [(row.response.tokens, row.places) for row in rows(items)] == [(5, (1,))]
    assert {(item.place, item.reason) for item in items if isinstance(item, Drop)} == {
        (2, Reason.REPEATED),
        (0, Reason.LONGER),
        (3, Reason.LONGER),
    }


def test_fewer_samples_than_a_method_compares():
    assert reasons(parse_curation("shortest-correct").items(problem(5))) == {Reason.FEW_SAMPLES: 1}
    assert reasons(parse_curation("length-levels").items(problem(5, 6))) == {Reason.FEW_SAMPLES: 2}
    assert lengths(parse_curation("sft").items(problem(5))) == [5]


def test_reasons_of_traces_that_are_no_examples():
    items = parse_curation("sft").items(
        problem(
            trace(5, finished=False),
            -6,
            trace(7, grade=None),
            trace(8, thinking=" \n"),
            trace(9, answer=" "),
            trace(10, answer="See <think> there"),
            trace(11, stop="not opened", thinking=""),
            trace(0),
            12,
        )
    )
    assert lengths(items) == [12]
    assert reasons(items) == {
        Reason.TRUNCATED: 1,
        Reason.WRONG: 1,
        Reason.UNGRADED: 1,
        Reason.NO_THINKING: 2,
        Reason.NO_ANSWER: 1,
        Reason.MARKER_INSIDE: 1,
        Reason.NO_TOKENS: 1,
    }


def test_the_written_turn_is_what_the_model_wrote():
    marks = FAMILIES["think-tags"]
    opened = problem(trace(9, thinking="é: 3.\n", answer="\n\n3"))
    assert opened.response(0).content(marks) == "<think>\né: 3.\n</think>\n\n3"
    by_itself = problem(trace(9, thinking="\né: 3.\n", answer="\n\n3"))
    assert by_itself.response(0).content(marks) == "<think>\né: 3.\n</think>\n\n3"
    (row,) = rows(parse_curation("sft").items(opened))
    written = row.to_dict("sft")
    assert [turn["role"] for turn in written["messages"]] == ["user", "assistant"]
    assert written["provenance"]["problem_id"] == "p"
    assert written["provenance"]["samples"] == [0]


# -- the baselines


def test_sft_takes_right_ones_in_order():
    assert lengths(parse_curation("sft").items(problem(9, -3, 5, 7))) == [9, 5, 7]
    items = parse_curation("sft:most=2").items(problem(9, -3, 5, 7))
    assert lengths(items) == [9, 5]
    assert reasons(items) == {Reason.WRONG: 1, Reason.SURPLUS: 1}


def test_shortest_correct_with_ties():
    items = parse_curation("shortest-correct:most=2").items(problem(9, 5, -2, 5, 5))
    assert [row.places for row in rows(items)] == [(1,), (3,)]
    assert reasons(items) == {Reason.WRONG: 1, Reason.LONGER: 2}
    assert reasons(parse_curation("shortest-correct").items(problem(-4, -5))) == {Reason.WRONG: 2}


def test_truncate_at_answer():
    thinking = "a) 1+1=2\nSo 2.\n\nWait, check.\n1+1=2\nSo 2.\n\nYes.\n"
    sampled = problem(trace(30, thinking=thinking), question="How many?")
    (row,) = rows(parse_curation("truncate-at-answer").items(sampled))
    assert row.response.thinking == "a) 1+1=2\nSo 2.\n"
    assert row.response.answer == sampled.traces[0].answer
    assert row.before == 30
    assert row.response.tokens == 30 - round((1 - 15 / len(thinking)) * 25)
    (row,) = rows(parse_curation("truncate-at-answer:more=1").items(sampled))
    assert row.response.thinking == "a) 1+1=2\nSo 2.\n\nWait, check.\n1+1=2\nSo 2.\n"
    (row,) = rows(parse_curation("truncate-at-answer:more=9").items(sampled))
    assert row.response == sampled.response(0)
    (row,) = rows(parse_curation("truncate-at-answer:splitter=sentence").items(sampled))
    assert row.response.thinking == "a) 1+1=2\nSo 2.\n"
    items = parse_curation("truncate-at-answer:most=1").items(
        problem(trace(5, thinking="nothing here"), trace(6, sample=1), trace(7, sample=2), question="How many?")
    )
    assert [row.places for row in rows(items)] == [(1,)]
    assert reasons(items) == {Reason.NOT_STATED: 1, Reason.SURPLUS: 1}


def test_length_levels():
    items = parse_curation("length-levels").items(problem(20, 10, 40, 30, -1))
    assert [(row.level, row.response.tokens, row.instruction) for row in rows(items)] == [
        ("short", 10, "Think briefly."),
        ("medium", 20, "Think normally."),
        ("", 20, ""),
        ("long", 40, "Think at length."),
    ]
    assert reasons(items) == {Reason.WRONG: 1, Reason.SURPLUS: 1}
    written = rows(items)[0].to_dict("length-levels")["messages"]
    assert written[0]["content"] == "What is 1+1?\n\nThink briefly."
    assert reasons(parse_curation("length-levels").items(problem(10, 10, 30))) == {Reason.SAME_LENGTH: 3}
    assert reasons(parse_curation("length-levels").items(problem(10, 30, -3))) == {
        Reason.WRONG: 1,
        Reason.SAME_LENGTH: 2,
    }


# -- tokensqueeze


def depth(total, right, alpha="0.2"):
    """How many positives there are, of distinct lengths, where every wrong response is longer than all of them."""
    sampled = problem(*range(1, right + 1), *(-(1000 + i) for i in range(total - right)))
    items = parse_curation(f"tokensqueeze:alpha={alpha},refine_steps=false,pairs=100000").items(sampled)
    return len({row.chosen.place for row in rows(items)})


@pytest.mark.parametrize(
    ("total", "right", "positives"),
    [(32, 8, 2), (32, 16, 2), (32, 24, 2), (64, 8, 2), (64, 16, 3), (64, 32, 4), (64, 48, 3), (64, 63, 1), (64, 1, 1),
     (64, 2, 1), (20, 10, 1), (20, 5, 1)],
)  # fmt: skip
def test_depth_by_difficulty(total, right, positives):
    assert depth(total, right) == positives


def test_depth_is_exact_where_the_product_is_whole():
    assert depth(40, 20) == 2
    assert depth(40, 20, "0.3") == 3
    # 0.2 * (1 - 15/45) * 15 is 2; as a float it lies a hair above.
    assert math.ceil(0.2 * (1 - 15 / 45) * 15) == 3
    assert depth(45, 15) == 2
    assert depth(64, 40) == 3
    assert depth(35, 30, "0.7") == 3


def test_pairs_are_longer_wrong_ones_and_taken_in_turns():
    sampled = problem(3, 5, -4, -9, -8, -2, trace(30, finished=False), 50, 51, 52)
    items = parse_curation("tokensqueeze:alpha=1,refine_steps=false").items(sampled)
    # N = 10, c = 5: k = ceil(0.5 * 5) = 3 positives: 3, 5 and 50, the last of which has no partner.
    pairs = [(row.chosen.tokens, row.rejected.tokens) for row in rows(items)]
    assert pairs == [(3, 4), (5, 9), (3, 9), (5, 8), (3, 8)]
    assert reasons(items) == {
        Reason.NO_PARTNER: 1,
        Reason.LONGER: 2,
        Reason.NOT_LONGER: 1,
        Reason.TRUNCATED: 1,
    }
    few = parse_curation("tokensqueeze:alpha=1,refine_steps=false,pairs=1").items(sampled)
    assert [(row.chosen.tokens, row.rejected.tokens) for row in rows(few)] == [(3, 4)]
    assert reasons(few)[Reason.SURPLUS] == 3
    written = rows(few)[0].to_dict("tokensqueeze")
    assert set(written) >= {"prompt", "chosen", "rejected"}


def test_no_pairs_where_all_are_right_or_none():
    squeeze = parse_curation("tokensqueeze:refine_steps=false")
    assert reasons(squeeze.items(problem(3, 4))) == {Reason.ALL_RIGHT: 2}
    assert reasons(squeeze.items(problem(-3, -4))) == {Reason.NO_RIGHT: 2}
    assert reasons(squeeze.items(problem(-3, trace(9, finished=False)))) == {Reason.NO_RIGHT: 2}


# -- o1-pruner


def test_rewards_as_the_paper_has_them():
    items = parse_curation("o1-pruner:variant=paper,taken=4,trade=2").items(problem(10, 20, -30, -60))
    weights = {row.before: row.weight for row in rows(items)}
    # Mean length 30, accuracy 1/2.
    assert weights == pytest.approx({10: 3.0, 20: 1.5, 30: -1.0, 60: -1.5})
    assert [row.places for row in rows(items)] == [
        row.places for row in rows(parse_curation("o1-pruner:variant=paper,taken=4").items(problem(10, 20, -30, -60)))
    ]


def test_what_was_cut_off_is_wrong_but_has_no_length():
    items = parse_curation("o1-pruner:variant=paper,taken=9").items(problem(10, 30, trace(500, finished=False), -20))
    # Mean length (10 + 30 + 20) / 3 = 20, accuracy 2/4.
    assert {row.before: row.weight for row in rows(items)} == pytest.approx({10: 2.0, 30: 2 / 3, 20: -1.0})
    assert reasons(items) == {Reason.TRUNCATED: 1}


def test_rewards_as_the_code_has_them():
    sampled = [problem(10, 20, -30, -60, id="a"), problem(1, 199, id="b")]
    pruner = asyncio.run(parse_curation("o1-pruner:taken=4").prepare(sampled, None))
    weights = [row.weight for each in sampled for row in sorted(rows(pruner.items(each)), key=lambda row: row.before)]
    # a: 3, 1.5, -1, -1.5; b: 99 clamped to 4 and 100/199 - 1.
    raw = [3.0, 1.5, -1.0, -1.5, 4.0, 100 / 199 - 1]
    mean = sum(raw) / 6
    deviation = math.sqrt(sum((value - mean) ** 2 for value in raw) / 6)
    assert weights == pytest.approx([(value - mean) / deviation for value in raw])
    with pytest.raises(CurationError, match="deviation"):
        asyncio.run(parse_curation("o1-pruner").prepare([problem(10, 10), problem(7, 7, id="b")], None))


def test_the_draw_depends_on_problem_and_seed_alone():
    sampled = problem(*range(10, 30))
    first = [row.places for row in rows(parse_curation("o1-pruner:variant=paper").items(sampled))]
    assert len(first) == 2
    assert first == [row.places for row in rows(parse_curation("o1-pruner:variant=paper").items(sampled))]
    others = {
        tuple(row.places for row in rows(parse_curation(f"o1-pruner:variant=paper,seed={seed}").items(sampled)))
        for seed in range(8)
    }
    assert len(others) > 1
    one = parse_curation("o1-pruner:variant=paper").items(replace(sampled, id="q"))
    assert reasons(one) == {Reason.NOT_DRAWN: 18}


# -- reweighting


def test_pools():
    easy = parse_curation("reweighting").items(problem(9, 5, 7, -3))
    assert [(row.pool, row.response.tokens) for row in rows(easy)] == [("short", 5)]
    hard = problem(9, 5, -3, -4)
    assert [(row.pool, row.response.tokens) for row in rows(parse_curation("reweighting").items(hard))] == [("long", 5)]
    first = parse_curation("reweighting:long=first").items(hard)
    assert [(row.pool, row.response.tokens) for row in rows(first)] == [("long", 9)]
    between = parse_curation("reweighting").items(problem(9, 5, -3))
    assert reasons(between) == {Reason.WRONG: 1, Reason.MEDIUM: 2}


@pytest.mark.parametrize(
    ("tokens", "accuracy", "needs", "weights"),
    [
        (7379.6, 0.756, (1.00, 0.00), (0.982, 0.018)),
        (4000, 0.70, (0.46, 0.12), (0.797, 0.203)),
        (3000, 0.60, (0.30, 0.334), (0.467, 0.533)),
        (2000, 0.45, (0.14, 0.655), (0.113, 0.887)),
        (500, 0.9, (0.0, 0.0), (0.5, 0.5)),
    ],
)
def test_the_ratio_rule(tokens, accuracy, needs, weights):
    mix = MixRatio(Reference(1120.9, 0.289), Reference(7379.6, 0.756), 512)
    assert mix.needs(tokens, accuracy) == pytest.approx(needs, abs=0.006)
    assert mix.update(tokens, accuracy) == pytest.approx(weights, abs=0.01)
    assert sum(mix.weights) == pytest.approx(1)


def test_the_ratio_keeps_a_floor_and_comes_back():
    mix = MixRatio(Reference(100, 0.3), Reference(200, 0.7), 10)
    for _ in range(4):
        mix.update(200, 0.7)
    assert mix.weights[1] == pytest.approx(5e-5, rel=0.05)
    again = MixRatio(Reference(100, 0.3), Reference(200, 0.7), 10)
    again.load_state_dict(mix.state_dict())
    assert again.update(100, 0.3) == mix.update(100, 0.3)


def test_guards_of_the_ratio():
    with pytest.raises(CurationError, match="no scale of length"):
        MixRatio(Reference(100, 0.3), Reference(100, 0.7), 10)
    with pytest.raises(CurationError, match="there are none"):
        MixRatio(Reference(100, 0.3), Reference(200, 0.7), 0)
    same = MixRatio(Reference(100, 0.5), Reference(200, 0.5), 10)
    assert same.needs(150, 0.5) == (0.5, 0.0)
    assert same.needs(150, 0.4) == pytest.approx((0.5, 1.0))
    # Far off the scale nothing overflows.
    far = MixRatio(Reference(100, 0.5), Reference(200, 0.5), 10_000)
    assert far.update(150, 0.0)[1] == pytest.approx(1, abs=1e-4)


def test_reading_of_pools():
    reader = PoolReader(([0, 1, 2], [10, 11]))
    assert [reader.next(pool) for pool in (0, 1, 1, 1, 0, 0, 0)] == [0, 10, 11, 10, 1, 2, 0]
    assert reader.positions == [4, 3]
    with pytest.raises(CurationError, match="the long pool is empty"):
        PoolReader(([0], []))
