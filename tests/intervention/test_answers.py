"""Finding, comparing and counting answers inside strategies."""

import asyncio
import time
from fractions import Fraction

import pytest
from intervention.scripted import ScriptedEngine, follow

from satisfice.engines.base import Sampling
from satisfice.intervention import Draft
from satisfice.intervention.answers import canonical, find_answer, given_answer, label, majority
from satisfice.lab.tokenizer import build_tokenizer
from satisfice.problems import Problem


@pytest.mark.parametrize(
    ("grader", "text", "found"),
    [
        ("math", "So \\boxed{x+1}.", "x+1"),
        ("math", "The answer is x+1.", "x+1"),
        ("math", "That leaves 41 and 42 eggs", "42"),
        ("math", "First \\boxed{3}, no: \\boxed{4", None),  # cut off while it was being revised
        ("math", "no idea", None),
        ("numeric", "The answer is about 2.5 m", "2.5"),
        ("numeric:0.01", "it weighs 2 kg", "2"),
        ("choice", "The answer is (b).", "B"),
        ("choice", "no letter", None),
        ("exact", "Paris", "Paris"),
        ("exact", "one 1\ntwo 2", None),
        ("reasoning-gym:chain_sum", "42", "42"),
        ("reasoning-gym:chain_sum", "a line\nand then 42", "42"),
    ],
)
def test_what_is_looked_for_depends_on_the_grader(grader, text, found):
    assert find_answer(text, grader) == found


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("025", "25.0", True),
        ("1,000", "1{,}000", True),
        ("$-3$", "−3", True),
        ("\\text{42}", "42.", True),
        ("-0", "0", True),
        ("\\dfrac{1}{2}", "\\frac{1}{2}", True),
        ("\\left( 1, 2 \\right)", "(1,\\,2)", True),
        ("Yes.", '"yes"', True),
        ("1/2", "0.5", True),
        ("\\frac12", "0.50", True),
        ("2\\frac{3}{4}", "2.75", True),
        ("5 000", "5000", True),
        ("x = 7", "7", True),
        ("\\text{East}", "east", True),
        ("x²", "x^2", True),
        ("90°", "90", True),
        ("seat", "east", False),
        ("A, B", "B, A", False),
        ("1, 2", "2, 1", True),
        ("1:20", "2:40", False),
        ("\\sqrt{4}", "2", False),  # that would take algebra
        ("3", "3.0000001", False),
        ("\\leftarrow", "arrow", False),
        ("5 cm", "5", False),
    ],
)
def test_equal_answers_share_their_canonical_form(left, right, same):
    assert (canonical(left) == canonical(right)) is same


@pytest.mark.parametrize("hostile", ["9^{9^{9^{9^{9}}}}", "(" * 100_000, "{" * 100_000, "1," * 50_000, "\\!" * 50_000])
def test_no_answer_keeps_the_vote_busy(hostile):
    started = time.perf_counter()
    canonical(hostile)
    assert time.perf_counter() - started < 1


def test_the_most_frequent_answer_wins_and_its_first_voter_stands_for_it():
    vote = majority(["4", None, "3", "3.0", "5"])
    assert vote.winner == 2
    assert vote.tally == {"4": 1, "3": 2, "5": 1}


def test_one_half_wins_however_it_is_spelled():
    vote = majority(["3", "0.5", r"\frac12", "3", "1/2"])
    assert vote.winner == 1
    assert vote.tally == {"3": 2, "0.5": 3}


def test_of_equals_the_first_counted_wins():
    assert majority([None, "4", "3", "3", "4"]).winner == 1


def test_nobody_votes():
    vote = majority([None, None])
    assert vote.winner is None
    assert vote.tally == {}


def test_weights_count_and_fractions_tie_exactly():
    thirds = [Fraction(2 * depth, 12) for depth in (1, 2, 3)]  # 1/6, 1/3, 1/2
    assert majority(["4", "4", "3"], thirds).winner == 0  # 1/2 each: the first counted
    assert majority(["3", "4", "4"], thirds).winner == 1  # 1/6 against 5/6
    assert majority(["3", "4", "3"], [0.2, 0.5, 0.2]).tally == {"3": 0.4, "4": 0.5}


def test_long_answers_are_shortened_only_for_showing():
    long = "x" * 1000
    assert len(label(long)) == 60
    assert majority([long, long + "y", long + "y"]).winner == 1
    assert label(None) is None


def test_a_response_that_was_cut_off_gives_no_answer():
    tokenizer = build_tokenizer()
    text = "<think>\nSo 3.\n</think>\n\nThe answer is \\boxed{3}."
    engine = ScriptedEngine(tokenizer, follow(tokenizer, text))

    async def answer(max_tokens):
        draft = Draft(engine, Problem("p", "Start with 1", "3"), Sampling(temperature=0, max_tokens=max_tokens))
        await draft.write()
        return draft.answer, given_answer(draft)

    whole = len(tokenizer(text.removeprefix("<think>\n"), add_special_tokens=False)["input_ids"])
    assert asyncio.run(answer(100)) == ("\n\nThe answer is \\boxed{3}.", "3")
    assert asyncio.run(answer(whole)) == ("\n\nThe answer is \\boxed{3}.", None)  # the end is missing
    assert asyncio.run(answer(3)) == ("", None)  # still thinking
