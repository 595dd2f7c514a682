"""The sums in trees and their solutions in steps, checked by a reader of prefix notation."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satisfice.lab.trees import (
    BEGIN,
    END,
    EQUALS,
    NEWLINE,
    PAD,
    PLUS,
    SIZES_FROM,
    Tree,
    draw,
    final_answer,
    prompt,
    text,
)
from satisfice.lab.trees import steps as number_of_steps

trees = st.builds(
    lambda seed, operators, swapped: draw(random.Random(seed), operators, swapped),
    st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip


def value(tokens):
    """The sum of a whole prefix expression, modulo 10."""

    def read(place):
        if tokens[place] != PLUS:
            return tokens[place], place + 1
        left, place = read(place + 1)
        right, place = read(place)
        return left + right, place

    total, end = read(0)
    assert end == len(tokens)
    return total % 10


def lines(solution):
    assert solution[-1] == END
    found = [[]]
    for token in solution[:-1]:
        found.append([]) if token == NEWLINE else found[-1].append(token)
    return [(line[: line.index(EQUALS)], line[line.index(EQUALS) + 1 :]) for line in found]


@given(trees, st.integers(1, 12))
def test_every_line_is_true_and_has_as_many_operators_as_asked(tree, size):
    steps = lines(tree.solution(size))
    assert len(steps) == number_of_steps(tree.operators, size)
    for place, (expression, result) in enumerate(steps):
        assert [value(expression)] == result
        last = place == len(steps) - 1
        assert expression.count(PLUS) == ((tree.operators - 1) % size + 1 if last else size)
    assert final_answer(tree.solution(size)) == tree.answer == value(tree.question)


@given(trees)
def test_in_one_step_the_expression_is_the_question(tree):
    assert lines(tree.solution(tree.operators)) == [(tree.question, [tree.answer])]
    assert len(tree.question) == 2 * tree.operators + 1


def test_as_people_read_it():
    tree = Tree((2, 5), ((7, False), (3, True)))
    assert text(prompt(tree, 2, 9)) == "..+3++257<begin><2>"
    assert text(tree.solution(2)) == "++257=4\n+34=7<end>"
    assert prompt(tree, 2, 9)[:2] == [PAD, PAD]
    assert prompt(tree, 2, 9)[-2:] == [BEGIN, SIZES_FROM + 2]


@pytest.mark.parametrize("cut", [[3, EQUALS, 4], [END], [4, END], [EQUALS, PLUS, END], [EQUALS, 4, NEWLINE, END]])
def test_what_ends_otherwise_has_no_answer(cut):
    assert final_answer(cut) is None


def test_children_are_swapped_as_often_as_asked():
    rng = random.Random(0)
    sides = [first for _ in range(500) for _, first in draw(rng, 9, 0.25).others]
    assert sum(sides) / len(sides) == pytest.approx(0.75, abs=0.03)
    assert 0.07 < sum(draw(rng, 6, 0.5).held_out for _ in range(2000)) / 2000 < 0.13
