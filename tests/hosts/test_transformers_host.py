"""Inside Transformers' generate: token for token what our engine writes under the same control."""

import asyncio
from dataclasses import replace

import pytest
import torch

from satisfice.engines.base import Sampling
from satisfice.engines.pretrained import load_pretrained
from satisfice.engines.transformers import TransformersEngine
from satisfice.hosts.transformers import HostError, MethodGenerate, ThinkingControls
from satisfice.intervention import MethodError, parse_method
from satisfice.intervention.controls import ConfidenceRule, EndScaling, LoopRule, SuppressTokens, ThinkingBudget
from satisfice.intervention.options import OptionError, Options
from satisfice.intervention.prompt_reader import PromptReader
from satisfice.problems import load_problems
from satisfice.thinking import ThinkingFormat

NEW = 96


@pytest.fixture(scope="module")
def lab():
    loaded = load_pretrained("lab", device="cpu")
    engine = TransformersEngine(loaded.network, loaded.tokenizer, threads=1, max_batch_tokens=1 << 15)
    yield loaded.network, loaded.tokenizer, engine
    engine.close()


PROBLEMS = load_problems("lab:calibration", limit=4).problems


def prompts_of(tokenizer, problems=PROBLEMS, behind=""):
    """Texts as a chat template renders them, with what the assistant has begun with."""
    return [
        tokenizer.apply_chat_template(problem.messages(), tokenize=False, add_generation_prompt=True) + behind
        for problem in problems
    ]


def padded(tokenizer, texts):
    return tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)


def generated(lab, texts, controls, **options):
    """The new ids of each row, up to and with the end of the text."""
    model, tokenizer, _ = lab
    inputs = padded(tokenizer, texts)
    options = {"do_sample": False, "max_new_tokens": NEW, **options}
    processors = [] if controls is None else [controls]
    written = model.generate(**inputs, logits_processor=processors, **options)[:, inputs["input_ids"].shape[1] :]
    return [until_end(row, tokenizer) for row in written.tolist()]


def until_end(ids, tokenizer):
    end = tokenizer.eos_token_id
    return ids[: ids.index(end) + 1] if end in ids else ids


def expected(lab, texts, control, max_tokens=NEW):
    """What our engine writes, greedily, under a control whose state is read from each prompt."""
    _, tokenizer, engine = lab
    reader = PromptReader(engine.thinking, tokenizer)
    sampling = Sampling(temperature=0, top_p=1, max_tokens=max_tokens)

    async def one(text):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        own = None if control is None else replace(control, state=reader.state(ids))
        return (await engine.generate(ids, sampling, control=own)).ids

    async def all_of_them():
        return [await one(text) for text in texts]

    return asyncio.run(all_of_them())


CONTROLS = [
    EndScaling(gain=1.0, bias=14.0),
    EndScaling(gain=-0.9, bias=-9.0),
    SuppressTokens(words=("=", "so", "check")),
    ThinkingBudget(most=9, cue="So"),
    ThinkingBudget(most=0),
    ThinkingBudget(endings=2, wait="Wait"),
    ThinkingBudget(most=40, endings=1, ramp_start=10, ramp_bias=6.0),
    ThinkingBudget(most=14, hint="So ", hint_at=6, grace=12, grace_end="line"),
    ThinkingBudget(loops=LoopRule(ngram=4, repeats=2, window=80, end="line", grace=20)),
    ThinkingBudget(confidence=ConfidenceRule(above=-0.05, window=8, end="line")),
    ThinkingBudget(confidence=ConfidenceRule(above=1.0, window=8, top=5)),
]


@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_a_batch_with_left_padding_is_what_our_engine_writes(lab, control):
    texts = prompts_of(lab[1])
    assert len({len(lab[1](text)["input_ids"]) for text in texts}) > 1  # so rows are padded
    controlled = generated(lab, texts, ThinkingControls(lab[1], control))
    assert controlled == expected(lab, texts, control)


def test_each_of_these_controls_changes_something(lab):
    texts = prompts_of(lab[1])
    plain = generated(lab, texts, None)
    assert plain == expected(lab, texts, None)
    for control in CONTROLS:
        assert generated(lab, texts, ThinkingControls(lab[1], control)) != plain, control


@pytest.mark.parametrize(
    "keys",
    [
        {"thinking_bias": 3},
        {"thinking_temperature": 0.5},
        {"suppress_reflection": True, "max_thinking_tokens": 20, "answer_cue": "So"},
        {"max_thinking_tokens": 30, "soft_thinking_tokens": 10, "min_thinking_endings": 1},
        {"max_thinking_tokens": 30, "hint": "So ", "hint_lead": 9, "grace_tokens": 9, "thinking_bias": 1},
        {
            "stop_loops": True,
            "loop_ngram": 4,
            "loop_repeats": 2,
            "confidence_above": -0.05,
            "confidence_window": 8,
            "confidence_min_tokens": 9,
            "confidence_end": "line",
        },
    ],
    ids=str,
)
def test_keys_mean_what_they_mean_in_the_plugin(lab, keys):
    tokenizer = lab[1]
    texts = prompts_of(tokenizer)
    found = generated(lab, texts, ThinkingControls(tokenizer, **keys))
    processor = ThinkingControls(tokenizer, **keys)
    generated(lab, texts[:1], processor, max_new_tokens=1)
    controls = Options(**keys).controls(processor._markers, 0, NEW, ())
    if len(controls) == 1:
        assert found == expected(lab, texts, controls[0])
    else:
        assert found != generated(lab, texts, None)
    if cap := keys.get("max_thinking_tokens"):
        close = tokenizer.convert_tokens_to_ids("</think>")
        assert all(close in row[: cap + keys.get("grace_tokens", 0) + 2] for row in found)


def test_answer_tokens_need_the_limit_and_keep_their_share(lab):
    with pytest.raises(OptionError, match="answer_tokens needs max_new_tokens"):
        ThinkingControls(lab[1], answer_tokens=10)
    close = lab[1].convert_tokens_to_ids("</think>")
    rows = generated(
        lab, prompts_of(lab[1]), ThinkingControls(lab[1], answer_tokens=20, max_new_tokens=30), max_new_tokens=30
    )
    assert all(row.index(close) <= 11 for row in rows)
    with pytest.raises(OptionError, match="max_tokens is 3"):
        ThinkingControls(lab[1], answer_tokens=20, max_new_tokens=3)


def test_one_object_serves_call_after_call(lab):
    controls = ThinkingControls(lab[1], max_thinking_tokens=12)
    texts = prompts_of(lab[1])
    control = ThinkingBudget(most=12)
    for some in (texts, texts[:1], texts[2:], texts[:1], texts[:1]):
        assert generated(lab, some, controls) == expected(lab, some, control)


def test_a_second_turn_whose_prompt_holds_the_first_begins_anew(lab):
    """The first turn's response, thinking and all, stands in the second prompt, which the ids of the first begin."""
    tokenizer = lab[1]
    controls = ThinkingControls(tokenizer, max_thinking_tokens=7)
    (first,) = prompts_of(tokenizer, PROBLEMS[:1])
    written = tokenizer.decode(generated(lab, [first], controls)[0])
    second = first + written + "\n" + prompts_of(tokenizer, PROBLEMS[1:2])[0]
    assert written.count("</think>") == 1
    assert generated(lab, [second], controls) == expected(lab, [second], ThinkingBudget(most=7))
    assert generated(lab, [second], controls)[0] != generated(lab, [second], None)[0]


@pytest.mark.parametrize("behind", ["So", "So 3 + 4 = 7", "So.\n</think>\n\n"])
def test_a_prompt_may_have_begun_the_response(lab, behind):
    texts = prompts_of(lab[1], behind=behind)
    control = ThinkingBudget(most=5)
    found = generated(lab, texts, ThinkingControls(lab[1], control))
    assert found == expected(lab, texts, control)


def test_rows_of_one_batch_may_stand_in_different_places(lab):
    tokenizer = lab[1]
    texts = [
        prompts_of(tokenizer, PROBLEMS[:1])[0],
        prompts_of(tokenizer, PROBLEMS[1:2], "So")[0],
        prompts_of(tokenizer, PROBLEMS[2:3], "So.\n</think>\n\n")[0],
    ]
    control = ThinkingBudget(most=6)
    assert generated(lab, texts, ThinkingControls(tokenizer, control)) == expected(lab, texts, control)


def test_every_returned_sequence_is_bounded_by_itself(lab):
    tokenizer = lab[1]
    torch.manual_seed(0)
    rows = generated(
        lab,
        prompts_of(tokenizer, PROBLEMS[:2]),
        ThinkingControls(tokenizer, max_thinking_tokens=10),
        do_sample=True,
        temperature=1.5,
        num_return_sequences=5,
    )
    close = tokenizer.convert_tokens_to_ids("</think>")
    assert len(rows) == 10
    assert len({tuple(row) for row in rows}) > 2
    assert all(close in row[:12] for row in rows)


@pytest.mark.parametrize("count", [1, 2])
def test_beams_are_refused(lab, count):
    controls = ThinkingControls(lab[1], max_thinking_tokens=10)
    texts = prompts_of(lab[1], PROBLEMS[:count])
    generated(lab, texts * 2, controls)  # rows as those of the beams to come
    with pytest.raises(HostError, match="num_beams=1"):
        generated(lab, texts, controls, num_beams=2, repetition_penalty=1.1)


@pytest.mark.parametrize("control", CONTROLS, ids=str)
@pytest.mark.parametrize("how", ["lookup", "assistant"])
def test_drafted_tokens_that_are_not_accepted_leave_no_trace(lab, control, how, tiny_model):
    texts = prompts_of(lab[1], PROBLEMS[1:2])
    options = {"prompt_lookup_num_tokens": 5} if how == "lookup" else {"assistant_model": tiny_model}
    assisted = generated(lab, texts, ThinkingControls(lab[1], control), **options)
    assert assisted == expected(lab, texts, control)


def test_the_scores_that_generate_keeps_are_left_alone(lab):
    model, tokenizer, _ = lab
    inputs = padded(tokenizer, prompts_of(tokenizer)[:1])
    controls = ThinkingControls(tokenizer, max_thinking_tokens=0)
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    kept = model.generate(**inputs, logits_processor=[controls], **options)
    assert max(float(step.max()) for step in kept.logits) < 1e6
    scores = torch.zeros(1, len(tokenizer))
    controls(inputs["input_ids"], scores)
    assert not scores.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_thinking_token": 5}, "did you mean max_thinking_tokens"),
        ({"max_thinking_tokens": -1}, "max_thinking_tokens is -1"),
        ({"thinking_level": "short"}, "has no key thinking_level"),
        ({"control": ThinkingBudget(most=1), "thinking_bias": 1}, "takes the place of all keys"),
        ({"control": "deer"}, "must be a Control"),
        ({"max_thinking_tokens": 5, "answer_cue": "a</think>"}, "leave it out"),
        ({"thinking": "tags"}, "neither a known family"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_made(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        ThinkingControls(tokenizer, **arguments)


# -- methods


def by_method(lab, texts, method, **options):
    model, tokenizer, _ = lab
    inputs = padded(tokenizer, texts)
    options = {"do_sample": False, "max_new_tokens": NEW, **options}
    loop = MethodGenerate(tokenizer, threads=1, max_batch_tokens=1 << 15)
    return model.generate(**inputs, custom_generate=loop, method=method, **options), inputs["input_ids"].shape[1]


def solved(lab, method, problems=PROBLEMS):
    sampling = Sampling(temperature=0, top_p=1, max_tokens=NEW)

    async def each():
        return [await parse_method(method).solve(lab[2], problem, sampling) for problem in problems]

    return [trace.response_ids for trace in asyncio.run(each())]


@pytest.mark.parametrize(
    "method", ["plain", "deer", "budget-forcing:max_thinking=15", "self-consistency:k=2+temperature-scaling:t=0.8"]
)
def test_a_method_writes_what_it_writes_on_our_engine(lab, method):
    ids, start = by_method(lab, prompts_of(lab[1]), method)
    assert [until_end(row, lab[1]) for row in ids[:, start:].tolist()] == solved(lab, method)
    longest = max(map(len, solved(lab, method)))
    assert ids.shape == (len(PROBLEMS), start + longest)


def test_plain_is_what_generate_returns_padding_included(lab):
    model, tokenizer, _ = lab
    inputs = padded(tokenizer, prompts_of(tokenizer))
    own = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)
    ids, _ = by_method(lab, prompts_of(tokenizer), "plain")
    assert torch.equal(ids, own)
    assert not model.training


def test_sampling_comes_from_the_seed_of_torch_and_differs_by_row(lab):
    def sampled():
        torch.manual_seed(5)
        return by_method(
            lab, prompts_of(lab[1])[:1], "plain", do_sample=True, temperature=1.3, top_k=0, num_return_sequences=4
        )[0]

    first, second = sampled(), sampled()
    assert torch.equal(first, second)
    assert len({tuple(row) for row in first.tolist()}) > 1


def test_it_works_where_an_event_loop_runs_already(lab):
    async def notebook():
        return by_method(lab, prompts_of(lab[1])[:1], parse_method("plain"))[0]

    assert len(asyncio.run(notebook())) == 1


@pytest.mark.parametrize(
    ("method", "options", "kind", "message"),
    [
        ("dear", {}, MethodError, "deer"),
        ("no-thinking", {}, MethodError, "asks the question anew"),
        ("plain", {"num_beams": 2}, HostError, "num_beams"),
        ("plain", {"repetition_penalty": 1.2}, HostError, "RepetitionPenalty"),
        ("plain", {"return_dict_in_generate": True}, HostError, "Method.solve"),
        ("plain", {"max_time": 5.0}, HostError, "MaxTimeCriteria"),
    ],
)
def test_what_a_method_cannot_do_is_refused(lab, method, options, kind, message):
    with pytest.raises(kind, match=message):
        by_method(lab, prompts_of(lab[1])[:1], method, **options)


def test_padding_on_the_right_is_refused(lab):
    model, tokenizer, _ = lab
    inputs = tokenizer(
        prompts_of(tokenizer), return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
    )
    with pytest.raises(HostError, match="padding_side to 'left'"):
        model.generate(**inputs, max_new_tokens=5, custom_generate=MethodGenerate(tokenizer), method="plain")


def test_a_format_can_be_given_as_text(tokenizer):
    assert ThinkingControls(tokenizer, thinking="<think>,</think>")._thinking == ThinkingFormat.parse(
        "<think>,</think>"
    )
