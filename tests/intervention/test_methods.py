"""The methods of the founding paper and its baselines, decision by decision, on a scripted engine."""

import asyncio
import dataclasses

import pytest
from intervention.scripted import ScriptedEngine, follow

from satisfice.engines.base import Capability, EngineError, Sampling, derive_seed, require
from satisfice.engines.remembering import RememberingEngine
from satisfice.intervention import METHODS, MethodError, describe, parse_method
from satisfice.intervention.controls import EndScaling
from satisfice.intervention.draft import Draft, fork_seed
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem
from satisfice.thinking import Phase, ThinkingFormat
from satisfice.trace import Trace

PROBLEM = Problem("p", "Start with 1: a) +2. What is the result?", "3")
GREEDY = Sampling(temperature=0, max_tokens=100)
LONG = (
    "<think>\na) 1+2=3\nSo 3.\n\nWait, let me check.\na) 1+2=3\nBefore 3, now 3. Yes.\n\n</think>\n\n"
    "The answer is \\boxed{3}."
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def solve(engine, method, sampling=GREEDY, problem=PROBLEM, watch=None):
    return asyncio.run(parse_method(method).solve(engine, problem, sampling, watch=watch))


def tokens(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


# -- plain


def test_plain_writes_one_response_and_counts_it(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))
    trace = solve(engine, "plain")
    assert trace.thinking.startswith("a) 1+2=3")
    assert trace.answer == "\n\nThe answer is \\boxed{3}."
    assert (trace.stop, trace.finished, trace.stopped_by) == ("marker", True, "<|end|>")
    inside = LONG.partition("<think>\n")[2]
    thinking = inside.partition("</think>")[0] + "</think>"
    assert trace.cost.thinking_tokens == tokens(tokenizer, thinking)
    assert trace.cost.thinking_tokens + trace.cost.answer_tokens == tokens(tokenizer, inside) + 1  # and the end
    assert trace.cost.forced_tokens == trace.cost.probe_tokens == 0
    assert trace.cost.prefilled_tokens == len(trace.prompt_ids) - 1
    assert len(engine.calls) == 1


def test_plain_cut_off_in_thinking_is_truncated(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))
    trace = solve(engine, "plain", Sampling(temperature=0, max_tokens=10))
    assert (trace.stop, trace.finished, trace.answer) == ("token limit", False, "")
    assert trace.cost.thinking_tokens == 10


def test_end_of_text_inside_thinking_is_an_ending_without_an_answer(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, "<think>\nSo 3."))
    trace = solve(engine, "plain")
    assert (trace.stop, trace.finished, trace.answer) == ("end of text", True, "")
    assert trace.thinking == "So 3."


def test_the_response_never_outgrows_the_context(tokenizer):
    prompt = len(ThinkingFormat.detect(tokenizer).render(tokenizer, [{"role": "user", "content": PROBLEM.prompt}]).ids)
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG), context_length=prompt + 7)
    trace = solve(engine, "plain")
    assert len(trace.response_ids) == 7
    assert not trace.finished


# -- endings: every limit, every method


@pytest.mark.parametrize(
    "method",
    [
        "plain",
        "no-thinking",
        "no-thinking:prefill=So",
        "temperature-scaling:t=0.7",
        "budget-forcing:max_thinking=9",
        "budget-forcing:ignore=2",
        "budget-forcing:max_thinking=12,ignore=2,cue=So",
        "deer:threshold=1",
        "entrocut:tau=0.000001,k=1",
        "entrocut:tau=9,k=1",
        "adaptive-think:alpha=0.9,merge=0,depth=2",
        "fractured:n=2,depths=2,m=1,cuts=code",
        "fractured-stop:start=5,interval=5,max_solution=8",
        "self-consistency:k=2",
        "best-of-n:n=2",
    ],
)
def test_a_response_that_nobody_ended_was_ended_by_the_limit(tokenizer, method):
    """At every limit: finished, stop and stopped_by say what the tokens say."""
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))
    whole = solve(engine, "plain")
    seen = set()
    for limit in range(1, len(whole.response_ids) + 12):
        trace = solve(engine, method, Sampling(temperature=0, max_tokens=limit))
        assert len(trace.response_ids) <= limit
        ended = trace.response_ids[-1] in engine.end_ids
        assert trace.finished == (ended or trace.stopped_by == "method")
        assert trace.stopped_by == (tokenizer.decode([trace.response_ids[-1]]) if ended else trace.stopped_by)
        assert (trace.stopped_by == "length") == (not trace.finished) == trace.truncated
        closed = "</think>" in tokenizer.decode(trace.response_ids)
        if trace.stop in ("marker", "closed by method"):
            assert closed
        if trace.stop == "token limit":
            assert not closed
            assert trace.truncated
        seen.add((trace.stop, trace.finished))
    if method != "no-thinking":  # which ends at once here: the script has no text to go on with
        assert {finished for _, finished in seen} == {True, False}


def test_a_marker_that_is_the_last_allowed_token_is_a_truncation(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))
    thinking = solve(engine, "plain").cost.thinking_tokens
    for method in ("plain", "budget-forcing:max_thinking=90", "entrocut:tau=0.000001,k=1,think_ratio=1"):
        trace = solve(engine, method, Sampling(temperature=0, max_tokens=thinking))
        assert (trace.stop, trace.finished, trace.stopped_by, trace.answer) == ("marker", False, "length", "")
        assert trace.cost.thinking_tokens == thinking


def test_a_prompt_beyond_the_context_is_refused_not_answered_with_nothing(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG), context_length=5)
    with pytest.raises(EngineError, match=r"the prompt has \d+ tokens, but scripted holds 5, .* longer context"):
        solve(engine, "plain")


def test_forks_of_forks_have_streams_of_their_own():
    ways = [(), (1,), (2,), (0, 1), (1, 1), (1, 0, 1), (0, 0, 1), (1, 2), (12,)]
    seeds = [fork_seed(7, way) for way in ways]
    assert len(set(seeds)) == len(ways)
    assert fork_seed(7, (0, 0)) == 7
    assert fork_seed(7, (1, 0)) == fork_seed(7, (1,))
    # What one derivation gives is no other's: a choice's fork is not the other choice's response.
    assert fork_seed(derive_seed(7, "choice/1"), (0,)) != fork_seed(7, (1,))


# -- no-thinking


def test_no_thinking_asks_the_template_where_it_has_a_switch(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, "<think>\n</think>\n\nThe answer is \\boxed{3}."))
    trace = solve(engine, "no-thinking")
    assert (trace.cost.thinking_tokens, trace.cost.forced_tokens) == (0, 0)
    assert trace.thinking == ""
    assert trace.answer == "The answer is \\boxed{3}."
    assert trace.stop == "not opened"


def test_no_thinking_writes_an_empty_thinking_where_the_template_has_no_switch():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("enable_thinking is false", "false")
    engine = ScriptedEngine(tokenizer, follow(tokenizer, "<think>\n</think>\n\nThe answer is \\boxed{3}."))
    trace = solve(engine, "no-thinking")
    assert trace.stop == "closed by method"
    assert trace.cost.thinking_tokens == 1  # the marker alone: empty thinking needs no line break
    assert trace.cost.forced_tokens == 2
    assert trace.answer == "\n\nThe answer is \\boxed{3}."


def test_no_thinking_with_a_prefill_writes_it_as_the_whole_thinking(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, "<think>\nSo 3.\n</think>\n\nThe answer is \\boxed{3}."))
    trace = solve(engine, 'no-thinking:prefill="So 3."')
    assert trace.thinking == "So 3.\n"
    assert trace.answer.endswith("\\boxed{3}.")


# -- temperature scaling


def boundary(stop: float, go_on: float):
    """At the end of each paragraph the model stops or goes on; else it repeats one paragraph."""

    def script(text: str) -> dict[str, float]:
        response = text.rpartition("<|assistant|>")[2]
        if "</think>" in response:
            return {"<|end|>": 1 - 1e-9}
        if response.endswith("\n\n"):
            return {"</think>": stop, "Wait": go_on}
        if response.endswith("."):
            return {"\n\n": 1 - 1e-9}
        return {".": 1 - 1e-9}

    return script


def test_scripted_logits_are_negative_so_scaling_leaves_them_alone(tokenizer):
    """Log-probabilities instead of raw logits: dividing them by T < 1 would make stopping less likely."""
    engine = ScriptedEngine(tokenizer, boundary(0.3, 0.6))
    assert solve(engine, "temperature-scaling:t=0.1").response_ids == solve(engine, "plain").response_ids


def test_bias_stops_where_the_odds_say_so(tokenizer):
    engine = ScriptedEngine(tokenizer, boundary(0.2, 0.7))
    plain = solve(engine, "plain", Sampling(temperature=0, max_tokens=30))
    assert plain.stop == "token limit"
    # 0.2 e^1.2 < 0.7 < 0.2 e^1.3
    low = solve(engine, "temperature-scaling:mode=bias,bias=1.2", Sampling(temperature=0, max_tokens=30))
    high = solve(engine, "temperature-scaling:mode=bias,bias=1.3", Sampling(temperature=0, max_tokens=30))
    assert low.response_ids == plain.response_ids
    assert high.stop == "marker"
    assert high.cost.thinking_tokens == 3  # ".", the blank line, the marker
    assert high.cost.forced_tokens == 0


def test_t_above_one_and_negative_bias_delay_the_end(tokenizer):
    engine = ScriptedEngine(tokenizer, boundary(0.6, 0.3))
    assert solve(engine, "plain").stop == "marker"
    assert solve(engine, "temperature-scaling:mode=bias,bias=-1", Sampling(temperature=0, max_tokens=30)).stop == (
        "token limit"
    )


def test_scaling_becomes_the_gain_of_the_control(tokenizer):
    thinking = ThinkingFormat.detect(tokenizer)
    assert parse_method("temperature-scaling:t=0.8").control(thinking) == EndScaling(gain=0.25)
    assert parse_method("temperature-scaling:mode=bias,bias=2").control(thinking) == EndScaling(bias=2.0)


def test_temperature_scaling_needs_an_engine_with_controls(tokenizer):
    engine = ScriptedEngine(tokenizer, boundary(0.5, 0.4), without=[Capability.CONTROL])
    method = parse_method("temperature-scaling")
    with pytest.raises(EngineError, match="temperature-scaling needs control, which scripted does not offer"):
        require(engine, method.needs, method.name)
    with pytest.raises(EngineError, match=r"needs control.*; mode=bias needs token bias alone, which it offers$"):
        method.check(engine)


def test_a_bias_of_the_marker_needs_no_more_than_biases(tokenizer):
    method = parse_method("temperature-scaling:mode=bias,bias=2")
    assert method.needs == {Capability.BIAS}
    assert type(method).needs == parse_method("temperature-scaling:t=1").needs == {Capability.CONTROL}
    method.check(ScriptedEngine(tokenizer, boundary(0.5, 0.4), without=[Capability.CONTROL]))
    with pytest.raises(EngineError, match=r"temperature-scaling needs token bias, which scripted does not offer$"):
        method.check(ScriptedEngine(tokenizer, dict, without=[Capability.CONTROL, Capability.BIAS]))
    with pytest.raises(EngineError, match=r"temperature-scaling needs control, which scripted does not offer$"):
        parse_method("temperature-scaling").check(
            ScriptedEngine(tokenizer, dict, without=[Capability.CONTROL, Capability.BIAS])
        )
    thinking = ThinkingFormat.detect(tokenizer)
    (close,) = thinking.close_ids(tokenizer)
    assert method.control(thinking).biases(thinking, tokenizer) == {close: 2.0}


def test_what_an_engine_says_of_a_control_is_said_of_the_method(tokenizer):
    class Choosy(ScriptedEngine):
        def check_control(self, control):
            raise EngineError(f"no {type(control).__name__} today")

    engine = Choosy(tokenizer, dict)
    parse_method("plain").check(engine)
    for spelled in ("temperature-scaling", "budget-forcing+temperature-scaling"):
        with pytest.raises(EngineError, match=r"^temperature-scaling: no EndScaling today"):
            parse_method(spelled).check(engine)
        with pytest.raises(EngineError, match=r"^temperature-scaling: no EndScaling today"):
            parse_method(spelled).check(RememberingEngine(engine))


# -- budget forcing


def test_a_budget_that_is_not_reached_changes_nothing(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))
    free, capped = solve(engine, "plain"), solve(engine, "budget-forcing:max_thinking=90")
    assert capped.response_ids == free.response_ids
    assert capped.stop == "marker"
    assert capped.cost.forced_tokens == 0


def test_thinking_is_closed_at_the_cap_with_a_line_break_and_the_cue(tokenizer):
    first = "<think>\na) 1+2=3\nSo 3."
    closed = first + "\n</think>\n\nFinal Answer: "
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG, closed + "\\boxed{3}."))
    cap = tokens(tokenizer, "a) 1+2=3\nSo 3.")
    trace = solve(engine, f'budget-forcing:max_thinking={cap},cue="Final Answer: "')
    assert trace.stop == "closed by method"
    assert trace.thinking == "a) 1+2=3\nSo 3.\n"
    assert trace.answer == "\n\nFinal Answer: \\boxed{3}."
    assert trace.cost.forced_tokens == tokens(tokenizer, "\n</think>\n\nFinal Answer: ")
    assert trace.cost.prefilled_tokens == len(trace.prompt_ids) - 1 + trace.cost.forced_tokens
    assert [event.kind for event in trace.events] == ["closed"]


def test_no_second_line_break_where_thinking_ends_with_one(tokenizer):
    engine = ScriptedEngine(
        tokenizer, follow(tokenizer, LONG, "<think>\na) 1+2=3\n</think>\n\nThe answer is \\boxed{3}.")
    )
    cap = tokens(tokenizer, "a) 1+2=3\n")
    assert solve(engine, f"budget-forcing:max_thinking={cap}").thinking == "a) 1+2=3\n"


def test_thinking_that_is_opened_again_is_under_the_same_cap(tokenizer):
    start = "<think>\nSo 3.\n\n</think>\n\nThe answer is \\boxed{3}.<think>"
    script = follow(
        tokenizer,
        start + "Wait, So 3. So 3. So 3. So 3. So 3.</think>3",
        start + "Wait, \n</think>\n\nSo 3.",
    )
    engine = ScriptedEngine(tokenizer, script)
    free = solve(engine, "plain")
    assert (free.thinking, free.answer) == (
        "So 3.\n\nWait, So 3. So 3. So 3. So 3. So 3.", "\n\nThe answer is \\boxed{3}.3",
    )  # fmt: skip
    cap = tokens(tokenizer, "So 3.\n\n</think><think>Wait, ")
    capped = solve(engine, f"budget-forcing:max_thinking={cap}")
    assert (capped.thinking, capped.answer) == ("So 3.\n\nWait, \n", "\n\nThe answer is \\boxed{3}.\n\nSo 3.")
    assert capped.stop == "closed by method"
    assert capped.finished
    # The cap, and what closes thinking.
    assert capped.cost.thinking_tokens == cap + tokens(tokenizer, "\n</think>")
    assert capped.cost.thinking_tokens + capped.cost.answer_tokens == len(capped.response_ids)


def test_a_budget_of_zero_closes_empty_thinking(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, "<think>\n</think>\n\nThe answer is \\boxed{3}."))
    trace = solve(engine, "budget-forcing:max_thinking=0")
    assert trace.thinking == ""
    assert trace.answer.endswith("\\boxed{3}.")
    assert trace.cost.thinking_tokens == 1


def test_ignored_endings_are_taken_back_and_waited_out(tokenizer):
    start = "<think>\nSo 3.\n\n"
    script = follow(
        tokenizer,
        start + "Wait, let me check.\n\nWait, let me verify.\n\n</think>\n\nThe answer is \\boxed{3}.",
        start + "</think>",
    )

    def with_endings(text: str) -> dict[str, float]:
        response = text.rpartition("<|assistant|>")[2]
        ends = response == start or response == start + "Wait, let me check.\n\n"
        return {"</think>": 1 - 1e-9} if ends else script(text)

    engine = ScriptedEngine(tokenizer, with_endings)
    trace = solve(engine, "budget-forcing:ignore=2")
    assert trace.thinking == "So 3.\n\nWait, let me check.\n\nWait, let me verify.\n\n"
    assert trace.answer.endswith("\\boxed{3}.")
    assert [event.detail["round"] for event in trace.events] == [1, 2]
    assert trace.cost.probe_tokens == 2  # the two markers that were written and taken back
    assert trace.cost.forced_tokens == 2
    assert trace.stop == "marker"


def test_every_round_gets_what_is_left_of_the_budget(tokenizer):
    def always_ending(text: str) -> dict[str, float]:
        response = text.rpartition("<|assistant|>")[2]
        if "</think>" in response:
            return {"<|end|>": 1 - 1e-9}
        return {"</think>": 1 - 1e-9} if response.endswith(". ") else {". ": 1 - 1e-9}

    engine = ScriptedEngine(tokenizer, always_ending)
    trace = solve(engine, "budget-forcing:max_thinking=5,ignore=100")
    # ". Wait. Wait." and no more: the cap counts all rounds together, forced words included.
    assert trace.thinking == ". Wait. Wait. \n" or trace.thinking == ". Wait. Wait. "
    limits = [sampling.max_tokens for _, sampling, _ in engine.calls]
    assert limits[:3] == [5, 3, 1]
    assert trace.stop == "closed by method"


def test_end_of_text_in_thinking_becomes_an_answer(tokenizer):
    engine = ScriptedEngine(
        tokenizer, follow(tokenizer, "<think>\nSo 3.", "<think>\nSo 3.\n</think>\n\nThe answer is \\boxed{3}.")
    )
    script = engine.script

    def ending(text: str) -> dict[str, float]:
        return {"<|end|>": 1 - 1e-9} if text.endswith("So 3.") else script(text)

    engine.script = ending
    trace = solve(engine, "budget-forcing:max_thinking=50")
    assert trace.answer.endswith("\\boxed{3}.")
    assert trace.stop == "closed by method"


def test_a_response_without_thinking_is_left_alone(tokenizer):
    thinking = ThinkingFormat("other", "<|user|>", "Therefore", "<|user|>", "Therefore")
    engine = ScriptedEngine(tokenizer, follow(tokenizer, "<think>\nThe answer is \\boxed{3}."), thinking=thinking)
    trace = solve(engine, "budget-forcing:max_thinking=50,ignore=3")
    assert trace.stop == "not opened"
    assert trace.answer == "The answer is \\boxed{3}."
    assert trace.cost.forced_tokens == 0


def test_no_room_for_an_answer_is_a_truncated_response(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))
    trace = solve(engine, "budget-forcing:max_thinking=12", Sampling(temperature=0, max_tokens=12))
    assert not trace.finished
    assert len(trace.response_ids) == 12


# -- what all methods share


def test_watch_sees_the_retained_text_in_its_phases(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))
    seen: list[tuple[Phase, str]] = []
    trace = solve(engine, "plain", watch=lambda phase, text: seen.append((phase, text)))
    assert "".join(text for _, text in seen) == f"{trace.thinking}</think>{trace.answer}"
    assert "".join(text for phase, text in seen if phase is Phase.ANSWER) == trace.answer


def test_watch_never_sees_an_ending_that_is_ignored(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))
    seen: list[str] = []
    trace = solve(engine, "budget-forcing:ignore=2", watch=lambda phase, text: seen.append(text))
    assert trace.cost.probe_tokens > 0  # endings that were taken back
    assert "".join(seen) == f"{trace.thinking}</think>{trace.answer}"


def test_earlier_turns_stand_between_the_system_turn_and_the_question(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))
    earlier = (("user", "Start with 3"), ("assistant", "So 3."))
    problem = dataclasses.replace(PROBLEM, system="Think briefly", history=earlier)
    trace = solve(engine, "plain", problem=problem)
    assert tokenizer.decode(trace.prompt_ids).startswith(
        "<|begin|><|user|>Think briefly<|user|>Start with 3<|assistant|>So 3.<|end|><|user|>" + PROBLEM.prompt
    )


@pytest.mark.parametrize(
    ("spelled", "breadth"),
    [
        ("plain", 1), ("deer+temperature-scaling", 1), ("deer-pro", 4), ("self-consistency:k=5", 5),
        ("best-of-n:n=6", 6), ("fractured:n=2,depths=3,m=4", 24), ("self-consistency:k=3+temperature-scaling", 3),
        ("decoding-tree:max_active=7", 7),
    ],
)  # fmt: skip
def test_breadth_is_how_many_sequences_there_may_be_at_once(spelled, breadth):
    assert parse_method(spelled).breadth == breadth


@pytest.mark.parametrize(
    "spelled",
    [
        "plain",
        "temperature-scaling:t=0.85",
        "temperature-scaling:mode=bias,bias=2.5",
        'budget-forcing:max_thinking=512,cue="Final Answer:\\n"',
        'budget-forcing:ignore=2,wait="Hmm, no: \\"wait\\""',
        "budget-forcing:wait=ü",
    ],
)
def test_spelling_round_trips(spelled):
    method = parse_method(spelled)
    assert parse_method(str(method)) == method
    assert str(parse_method(str(method))) == str(method)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("temprature-scaling", "did you mean 'temperature-scaling'"),
        ("zzz", "there is no method 'zzz'; `satisfice methods`"),
        ("plain:t=1", "plain has no parameter 't'; it has none"),
        ("temperature-scaling:tt=1", "did you mean 't'"),
        ("temperature-scaling:t=abc", "t is 'abc'; it must be a number within 0.001..1000"),
        ("temperature-scaling:t=0", "must be within 0.001..1000"),
        ("temperature-scaling:t=1e-300", "must be within 0.001..1000"),
        ("temperature-scaling:t=nan", "must be within 0.001..1000"),
        ("temperature-scaling:mode=bias,bias=1e308", "must be within -1000..1000"),
        ("temperature-scaling:bias=2", "mode=bias only"),
        ("temperature-scaling:mode=bias", "needs a bias"),
        ("temperature-scaling:mode=other", "mode is 'other'; it must be scale or bias"),
        ("budget-forcing:max_thinking=-1", "max_thinking is -1; it must be at least 0"),
        ("budget-forcing:max_thinking=1.5", "max_thinking is 1.5; it must be a whole number, at least 0, or none"),
        ("budget-forcing:ignore=1,wait=", "wait is empty"),
        ("budget-forcing:512", "cannot read '512'"),
        (r'budget-forcing:wait="C:\User"', "in double quotes it must be a JSON text"),
    ],
)
def test_bad_spelling_is_one_clear_sentence(spelled, message):
    with pytest.raises(MethodError) as caught:
        parse_method(spelled)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_method_describes_itself():
    for kind in METHODS.values():
        described = describe(kind)
        assert described["summary"]
        assert [parameter["name"] for parameter in described["parameters"]] == [
            parameter.name for parameter in dataclasses.fields(kind)
        ]
        assert all(parameter["meaning"] for parameter in described["parameters"]), kind.name


# -- forks and composition


def test_forks_cost_as_branches_unless_adopted(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))

    async def fork_twice():
        draft = Draft(engine, PROBLEM, GREEDY, method="two")
        await draft.write(max_tokens=5)
        first, second = draft.fork(0), draft.fork(1)
        assert first.sampling.seed == GREEDY.seed != second.sampling.seed
        await first.write(max_tokens=4)
        await second.write()
        draft.adopt(second)
        return draft.trace()

    trace = asyncio.run(fork_twice())
    assert trace.answer.endswith("\\boxed{3}.")
    assert trace.cost.branch_tokens == 4
    assert trace.cost.retained_tokens == len(trace.response_ids)
    assert trace.cost.forward_passes == len(trace.response_ids) + 4
    assert trace.cost.prefilled_tokens == len(trace.prompt_ids) - 1


def test_a_fork_knows_who_closed_its_thinking(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))

    async def closed() -> Draft:
        draft = Draft(engine, PROBLEM, GREEDY)
        await draft.think(5)
        draft.close_thinking()
        return draft

    async def adopted(draft: Draft, at: int | None, *, close: bool = False) -> str:
        fork = draft.fork(1, at)
        if close:
            fork.close_thinking()
        await fork.write()
        draft.adopt(fork)
        return draft.trace().stop

    async def stops() -> list[str]:
        open_ = Draft(engine, PROBLEM, GREEDY)
        await open_.think(5)
        return [
            await adopted(await closed(), None),  # it begins after the marker that the method wrote
            await adopted(await closed(), 5),  # before it, and the model writes its own
            await adopted(open_, None, close=True),
        ]

    assert asyncio.run(stops()) == ["closed by method", "marker", "closed by method"]


def test_a_marker_that_was_taken_back_closed_nothing(tokenizer):
    engine = ScriptedEngine(tokenizer, follow(tokenizer, LONG))

    async def written() -> Trace:
        draft = Draft(engine, PROBLEM, GREEDY)
        await draft.think(5)
        draft.close_thinking()
        draft.take_back(len(draft.ids) - 5)
        await draft.write()
        return draft.trace()

    trace = asyncio.run(written())
    assert (trace.stop, trace.cost.forced_tokens) == ("marker", 0)


def test_a_control_acts_inside_a_strategy(tokenizer):
    engine = ScriptedEngine(tokenizer, boundary(0.2, 0.7))
    joined = "budget-forcing:max_thinking=20+temperature-scaling:mode=bias,bias=2"
    assert str(parse_method(joined)) == joined
    assert parse_method(joined).needs == {Capability.BIAS}
    assert parse_method("budget-forcing:max_thinking=20+temperature-scaling:t=0.9").needs == {Capability.CONTROL}
    trace = solve(engine, joined)
    assert (trace.stop, trace.cost.thinking_tokens) == ("marker", 3)
    assert solve(engine, "budget-forcing:max_thinking=20").stop == "closed by method"


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("plain+temperature-scaling", "that is temperature-scaling alone"),
        ("no-thinking+temperature-scaling", "no thinking to act on"),
        ("temperature-scaling+budget-forcing", "edits no logits"),
        ("temperature-scaling+temperature-scaling", "a control itself"),
        ("budget-forcing+temperature-scaling+temperature-scaling", "at most one strategy"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_a_reason(spelled, message):
    with pytest.raises(MethodError, match=message):
        parse_method(spelled)


def test_a_plus_sign_in_quotes_is_text():
    assert parse_method('budget-forcing:cue="a +b"').cue == "a +b"
