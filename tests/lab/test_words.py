"""The word problems and their verbose teacher."""

import random
import re
from itertools import islice
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satisfice.lab.stories import COMPARISONS, STORIES, Story
from satisfice.lab.words import (
    LARGEST,
    LONGER_STEPS,
    SMALLEST,
    SPLITS,
    STEPS,
    Event,
    WordProblem,
    problems,
    random_problem,
)
from satisfice.lab.words_teacher import LEVEL_INSTRUCTIONS, MANNERS, WordHabits, answer_text, drill, examples, thinking
from satisfice.problems import GraderPool, load_problems
from satisfice.problems.problem import MATH_INSTRUCTION, usual_instruction
from satisfice.problems.sources import ProblemsError
from satisfice.reinforcement.objectives.tldr import TLDR

CALCULATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
REQUEST = re.compile(r"^(Wait|Hmm|But wait|Alternatively), let me (check|check that again|go over it again)\. ")


def some(split: str, count: int, seed: int = 0) -> list[WordProblem]:
    return list(islice(problems(split, seed), count))


def checks(text: str) -> int:
    return sum(bool(REQUEST.match(paragraph)) for paragraph in text.split("\n\n"))


def solved_by_reading(problem: WordProblem) -> int:
    """The answer from the sentences alone: the stories say in words what the events say in numbers."""
    number = int(re.findall(r"\d+", problem.opening)[0])
    for event in problem.events:
        numbers = [int(found) for found in re.findall(r"\d+", event.sentence)]
        words = event.sentence.lower()
        if not numbers:
            if "double" in words or "twice" in words:
                number *= 2
            elif "triple" in words or "three times" in words:
                number *= 3
            elif "third" in words:
                number //= 3
            else:
                assert "half" in words or "halves" in words, words
                number //= 2
            continue
        size = numbers[0] * numbers[1] if len(numbers) == 2 else numbers[0]
        number += size if event.kind[0] == "+" else -size
    return number


def test_a_problem_is_its_sentences_and_its_steps():
    events = (
        Event("+*", "she buys 3 bags with 4 plums each", "She buys 3 bags with 4 plums each.", 4, 3),
        Event("/2", "she eats half of the plums", "Then she eats half of the plums.", 2),
        Event("-", "she loses 5 of them", "She loses 5 of them.", 5),
    )
    problem = WordProblem("fruit", "plums", 8, "Nora has 8 plums.", events, "How many plums does Nora have now?")
    assert problem.prompt == (
        "Nora has 8 plums. She buys 3 bags with 4 plums each. Then she eats half of the plums. She loses 5 of them. "
        "How many plums does Nora have now?"
    )
    steps = [(step.left, step.sign, step.right, step.result) for step in problem.calculations]
    assert steps == [(3, "*", 4, 12), (8, "+", 12, 20), (20, "/", 2, 10), (10, "-", 5, 5)]
    assert problem.answer == 5


@pytest.mark.parametrize("split", SPLITS)
def test_gold_answers_are_what_the_sentences_say(split):
    for problem in some(split, 400, seed=3):
        assert solved_by_reading(problem) == problem.answer, problem.prompt


@pytest.mark.parametrize("split", SPLITS)
def test_a_stream_repeats_for_a_seed_and_has_no_text_twice(split):
    found = some(split, 500, seed=5)
    assert found == some(split, 500, seed=5)
    assert found[:200] == some(split, 200, seed=5)
    assert len({problem.prompt for problem in found}) == 500
    assert found[:50] != some(split, 50, seed=6)


def test_splits_share_no_problem_whatever_the_seed():
    identities = {
        split: {
            (problem.story, problem.start, tuple((event.kind, event.amount, event.packs) for event in problem.events))
            for seed in (0, 1)
            for problem in islice(problems(split, seed), 700)
        }
        for split in SPLITS
    }
    texts = {split: {problem.prompt for problem in some(split, 700)} for split in SPLITS}
    for left in SPLITS:
        for right in SPLITS:
            if left != right:
                assert not identities[left] & identities[right]
                assert not texts[left] & texts[right]


def test_the_same_problem_with_other_names_is_in_the_same_split():
    for problem in some("train", 100):
        renamed = problem.opening.replace("Anna", "Zora").replace("Tom", "Ugo")
        other = WordProblem(problem.story, "figs", problem.start, renamed, problem.events, "And now?")
        assert other.split == "train"


def test_splits_differ_in_steps_and_stories():
    held_out = {story.key for story in STORIES if story.held_out}
    assert len(held_out) >= 8
    assert len(STORIES) - len(held_out) >= 30
    for split in SPLITS:
        found = some(split, 600)
        assert {len(problem.calculations) for problem in found} == set(LONGER_STEPS if split == "longer" else STEPS)
        stories = {problem.story for problem in found}
        expected = held_out if split == "other" else {story.key for story in STORIES} - held_out
        assert stories == expected


def test_no_sentence_of_a_held_out_story_is_in_a_story_that_is_trained_on():
    sentences = {
        held_out: {
            text
            for story in STORIES
            if story.held_out == held_out
            for text in (*story.openings, *(event.split(" ", 1)[1] for event in story.events))
        }
        for held_out in (True, False)
    }
    assert not sentences[True] & sentences[False]


def test_numbers_stay_within_the_bounds():
    for split in SPLITS:
        for problem in some(split, 300):
            numbers = [number for step in problem.calculations for number in (step.left, step.right, step.result)]
            assert min(numbers) >= SMALLEST
            assert max(numbers) <= LARGEST


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.key)
def test_texts_are_clean(story: Story):
    """What a program can see of grammar: the spacing, the sentences, plurals, and that no place was left open."""
    rng = random.Random(story.key)
    for _ in range(120):
        text = random_problem(rng, story, rng.choice((2, 3, 4, 5, 6))).prompt
        assert "  " not in text
        assert not re.search(r"[{}]|\bNone\b|\b1 ", text)
        assert not re.search(r"\b(\w+) \1\b", text), text
        assert text.endswith("?")
        assert text.count("?") == 1
        sentences = re.split(r"(?<=[.?]) ", text)
        assert all(sentence[0].isupper() or sentence[0].isdigit() for sentence in sentences)
        assert len(set(sentences)) == len(sentences)
        assert not re.search(r" [,.?]|\.\.|,\.", text)


def test_every_event_has_an_operation_and_the_places_that_go_with_it():
    for text in (*COMPARISONS, *(event for story in STORIES for event in story.events)):
        kind, sentence = text.split(" ", 1)
        places = set(re.findall(r"{(\w)}", sentence))
        wanted = {"+": {"a"}, "-": {"a"}, "+*": {"a", "b"}, "-*": {"a", "b"}}.get(kind, set())
        assert kind in {"+", "-", "+*", "-*", "*2", "*3", "/2", "/3"}
        assert places & {"a", "b"} == wanted
        assert not sentence.endswith(".")
    assert len({story.key for story in STORIES}) == len(STORIES)


def test_a_person_keeps_the_same_pronoun():
    for problem in some("train", 400):
        forms = set(re.findall(r"\b(he|she|his|her|him)\b", problem.prompt.lower()))
        assert not (forms & {"he", "his", "him"} and forms & {"she", "her"}), problem.prompt


def test_a_comparison_is_not_contradicted():
    for problem in some("calibration", 600):
        other = re.search(r"(?:does|of \w[\w ]* does) (\w+) have\?$", problem.question)
        compared = [event for event in problem.events if re.search(r"has now$", event.clause)]
        if compared:
            assert compared == [problem.events[-1]]
            assert other is not None
            assert compared[0].clause.startswith(other[1])
            assert all(other[1] not in event.clause for event in problem.events[:-1])


# -- as a source of problems


def test_words_are_a_source_of_problems():
    loaded = load_problems("words:longer", limit=7)
    assert loaded.name == "words:longer"
    loaded = loaded.problems
    assert [problem.id for problem in loaded] == [f"words/longer/{index}" for index in range(7)]
    assert [problem.prompt for problem in loaded] == [problem.prompt for problem in some("longer", 7)]
    assert [problem.answer for problem in loaded] == [str(problem.answer) for problem in some("longer", 7)]
    assert len(load_problems("words:test").problems) == 1000
    assert load_problems("words:test", limit=1200).problems[:1000] == load_problems("words:test").problems


def test_unknown_splits_and_options_are_refused():
    with pytest.raises(ProblemsError, match=r"words has no split 'rare'; use one of train, calibration, test"):
        load_problems("words:rare")
    with pytest.raises(ProblemsError, match="words:test takes no split"):
        load_problems("words:test", split="train")


def test_words_need_no_instruction_and_others_still_do():
    assert usual_instruction("words:test") == ""
    assert usual_instruction("words.jsonl") == MATH_INSTRUCTION


# -- the teacher


@given(st.integers(0, 10_000), st.sampled_from(tuple(MANNERS)))
def test_a_trace_ends_with_the_right_answer(seed, instruction):
    rng = random.Random(seed)
    problem = random_problem(rng, rng.choice(STORIES), rng.choice((2, 3, 4, 5, 6)))
    text = thinking(rng, problem, instruction=instruction)
    assert text.endswith("\n\n")
    last = text.strip().split("\n\n")[-1]
    assert CALCULATION.findall(last)[-1][-1] == str(problem.answer)
    assert re.search(rf"\b{problem.answer}\b", last.rsplit(". ", 1)[1])


def test_traces_repeat_for_a_seed():
    rows = [list(examples(random.Random(4), some("train", 40))) for _ in range(2)]
    assert rows[0] == rows[1]
    assert rows[0] != list(examples(random.Random(5), some("train", 40)))


def test_answers_are_graded_right():
    found = some("train", 60, seed=9)
    answers = [
        {"grader": "math", "answer": str(example["answer"]), "gold": str(problem.answer + off), "finished": True}
        for off in (0, 1)
        for problem, example in zip(found, examples(random.Random(2), found), strict=True)
    ]
    with GraderPool() as graders:
        grades = graders.grade_all(answers)
    assert [grade.correct for grade in grades] == [True] * 60 + [False] * 60


def test_without_slips_every_calculation_is_right_and_with_them_some_are_wrong():
    found = some("train", 300, seed=2)
    for slip in (0.0, 0.2):
        habits = WordHabits(slip=slip, check_slip=0.0)
        rng, wrong, discovered = random.Random(1), 0, 0
        for problem in found:
            text = thinking(rng, problem, habits)
            for left, sign, right, result in CALCULATION.findall(text.split("\n\n")[0]):
                wrong += {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}.get(
                    sign, int(left) // int(right)
                ) != int(result)
            discovered += bool(re.search(r"\d, not \d|\d and not \d", text))
        assert (wrong > 0) == (discovered > 0) == (slip > 0)


def test_a_wrong_first_pass_takes_longer():
    lengths: dict[bool, list[int]] = {True: [], False: []}
    rng = random.Random(6)
    for problem in some("train", 1500, seed=4):
        text = thinking(rng, problem)
        first = int(CALCULATION.findall(text.split("\n\n")[0])[-1][-1])
        lengths[first == problem.answer].append(checks(text))
    assert mean(lengths[False]) > mean(lengths[True]) + 0.8


def test_rounds_are_heavy_tailed_and_a_few_traces_have_none():
    rng = random.Random(8)
    rounds = [checks(thinking(rng, problem)) for problem in some("train", 2000, seed=7)]
    none = rounds.count(0) / len(rounds)
    assert 0.02 < none < 0.08
    stopping = []
    for k in (1, 2, 3, 4):
        there = [count for count in rounds if count >= k]
        stopping.append(sum(count == k for count in there) / len(there))
    assert stopping[0] > stopping[1] > stopping[3]
    assert max(rounds) >= 7


def test_a_first_stage_has_hardly_a_check():
    rng = random.Random(8)
    habits = WordHabits(unchecked=0.9)
    rounds = [checks(thinking(rng, problem, habits)) for problem in some("train", 500, seed=7)]
    assert 0.8 < rounds.count(0) / len(rounds) < 0.95


def test_lengths_are_in_bounds():
    """In words and signs, of which a token is about one."""
    rng = random.Random(3)
    lengths = [
        len(re.findall(r"\d|[^\W\d]+|[^\w\s]", str(example["thinking"])))
        for example in examples(rng, some("train", 800, seed=3), direct_share=0.0)
    ]
    assert 120 < mean(lengths) < 190
    assert max(lengths) < 550
    assert sum(55 <= length <= 260 for length in lengths) / len(lengths) > 0.8


def test_levels_are_those_of_reinforcement_and_are_followed():
    assert tuple(TLDR().instructions.values()) == LEVEL_INSTRUCTIONS
    found = some("train", 600, seed=11)
    rounds, openers = {}, {}
    for instruction in MANNERS:
        rng = random.Random(1)
        texts = [thinking(rng, problem, instruction=instruction) for problem in found]
        rounds[instruction] = mean(checks(text) for text in texts)
        openers[instruction] = {text.split(".")[0] for text in texts}
    assert rounds["Think briefly."] + 0.5 < rounds["Think normally."] < rounds["Think at length."] - 0.5
    assert abs(rounds[""] - rounds["Think normally."]) < 0.4
    assert [len(openers[level]) for level in LEVEL_INSTRUCTIONS] == [1, 1, 1]
    assert len(set().union(*openers.values())) == sum(map(len, openers.values()))


def test_some_questions_have_an_instruction_and_some_examples_no_thinking():
    found = some("train", 1000, seed=12)
    rows = list(examples(random.Random(0), found, direct_share=0.1, instructed_share=0.5))
    told = [row for row in rows if "\n\n" in str(row["prompt"])]
    assert 0.44 < len(told) / len(rows) < 0.56
    assert {str(row["prompt"]).split("\n\n")[1] for row in told} == set(LEVEL_INSTRUCTIONS)
    assert 0.06 < sum(row["thinking"] is None for row in rows) / len(rows) < 0.14
    assert [row["answer"] for row in rows] == [answer_text(problem.answer) for problem in found]


@given(st.integers(0, 10_000))
def test_a_drill_is_a_chain_whose_every_calculation_is_right_and_asked_for(seed):
    example = drill(random.Random(seed), length=12)
    start = int(re.search(r"Start with (\d+)", example["prompt"])[1])
    found = CALCULATION.findall(example["thinking"])
    assert [f"{sign}{right}" for _, sign, right, _ in found] == re.findall(r"[-+*/]\d+", example["prompt"])
    assert len(found) == 12
    for left, sign, right, result in found:
        assert int(left) == start
        start = {"+": start + int(right), "-": start - int(right), "*": start * int(right), "/": start / int(right)}[
            sign
        ]
        assert start == int(result)
        assert SMALLEST <= start <= LARGEST
    assert example["answer"] == answer_text(int(start))


def test_a_share_of_the_examples_are_drills():
    made = list(examples(random.Random(0), some("train", 300), drill_share=0.5))
    assert 0.4 < mean("and calculate:" in example["prompt"] for example in made) < 0.6
    assert not any("and calculate:" in example["prompt"] for example in examples(random.Random(0), some("train", 100)))
