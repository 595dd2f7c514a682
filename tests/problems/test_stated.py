"""The answers that a thinking states on its way."""

from satisfice.problems.stated import stated_answers


def test_each_paragraph_leaves_an_answer_or_that_of_the_one_before():
    thinking = "Let me see.\n\nSo the total is 12.\n\nHmm, let me look at that once more.\n\nThe answer is 14.\n"
    stated = stated_answers(thinking, "numeric")
    assert [answer for _, answer in stated] == [None, "12", "12", "14"]
    assert [end for end, _ in stated] == [13, 34, 71, len(thinking)]


def test_boxes_and_option_letters():
    assert [answer for _, answer in stated_answers("It is \\boxed{3}.\n\nNo: \\boxed{4}", "math")] == ["3", "4"]
    assert [answer for _, answer in stated_answers("The answer is (B).\n\nSo the answer is C.", "choice:4")] == [
        "B",
        "C",
    ]


def test_an_empty_thinking_states_nothing():
    assert stated_answers("", "math") == []
    assert stated_answers("\n\n \n\n", "math") == []
