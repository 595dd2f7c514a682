"""Answers without a box, graded whole: what is found in the text and what it is worth."""

import pytest

from satisfice.problems import extract_answer, grade_answer

CASES = [
    ("math", "1/3", "Adding, $\\frac{1}{3}$", True),
    ("math", "x \\neq 4", "Hence the solution is $x \\neq 4$.", True),
    ("math", "[2, 5)", "So the domain is $[2, 5)$.", True),
    ("math", "(2, 5)", "So the domain is $[2, 5)$.", False),
    ("math", "a = 3, b = 4", "We get $a = 3$ and $b = 4$.", True),
    ("math", "3, 4", "\\boxed{3} and \\boxed{4}", True),
    ("math", "3, 4", "The roots are $\\boxed{3}$, $\\boxed{4}$.", True),
    ("math", "4", "The roots are $\\boxed{3}$ and $\\boxed{4}$.", False),
    ("math", "4", "First \\boxed{3}. Wait, no, \\boxed{4}.", True),
    ("math", "4", "Case 1 gives \\boxed{3}.\n\nSo in total we have \\boxed{4}.", True),
    (
        "math",
        "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
        "The vector is \\[\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}.\\]",
        True,
    ),
    ("math", "72", "48/2 = 24\n48+24 = 72\n#### 72", True),
    ("math", "72", "#### 72 clips", True),
    ("math", "1/2", "#### \\frac{1}{2}", True),
    ("math", "5", "#### Step 2\nSo 5 it is.", True),
    ("math", "7", "<answer>7</answer>", True),
    ("math", "7", "<answer> The answer is $7$. </answer>", True),
    ("math", "7", "<answer>6</answer> no: <answer>7</answer>", True),
    ("math", "7", "**Final Answer**\n\n7", True),
    ("math", "x^2", "## Answer:\n\n$x^2$", True),
    ("math", "x^2", "### Final answer\n\\[\nx^2\n\\]", True),
    ("math", "8", "Die Antwort ist 8.", True),
    ("math", "8", "Die Antwort lautet: $8$.", True),
    ("math", "8", "La réponse est 8.", True),
    ("math", "8", "La réponse finale est $8$.", True),
    ("math", "8", "La respuesta final es 8 manzanas.", True),
    ("math", "8", "答案是 8。", True),
    ("math", "8", "答案：8", True),
    ("math", "x+2", "所以答案为 $x+2$。", True),
    ("math", "8", "Ответ: 8.", True),
    ("math", "x-1", "Ответ: $x-1$", True),
    ("math", "8", "A resposta é 8.", True),
    ("math", "8", "La risposta è 8.", True),
    ("math", "8", "答えは 8 です。", True),
    ("math", "8", "정답은 8입니다.", True),
    ("math", "8", "Odpowiedź: 8", True),
    ("math", "8", "Het antwoord is 8.", True),
    ("math", "8", "Cevap: 8", True),
    ("math", "3.5", "The answer is approximately 3.5 m.", True),
    ("math", "3.5", "The answer is ca. 3.5.", True),
    ("math", "12", "The answer is, therefore, 12.", True),
    ("math", "12", "The answer is simply $12$", True),
    ("math", "12", "The answer is 12 because $3 \\cdot 4 = 12$, not 13.", True),
    ("math", "-20", "The answer is -$20.", True),
    ("math", "-20", "The answer is $-20.", True),
    ("math", "20", "The answer is $20.", True),
    ("math", "20", "It costs $5 more, so she pays $20.", True),
    ("math", "20", "She pays $15 + $5 = $20 in total.", True),
    ("math", "5", "It was $20 and now it is $5.", True),
    ("math", "2", "We get $3x+2$.", False),
    ("math", "2", "We get $\\frac{1}{2}$.", False),
    ("math", "2", "The probability is 1/2.", False),
    ("math", "1/2", "The probability is 1/2.", True),
    ("math", "3", "In total $x = 3$ apples.", True),
    ("math", "10:30", "The answer is 10:30 a.m. on Monday.", True),
    ("math", "10:30 p.m.", "The answer is 10:30 a.m. on Monday.", False),
    ("math", "\\text{Tuesday}", "The answer is Tuesday.", True),
    ("math", "\\text{Tuesday}", "The answer is **Tuesday**.", True),
    ("math", "\\text{odd}", "The function is \\boxed{odd}.", True),
    ("math", "5", "Therefore \\boxed{5}. I have written the answer within \\boxed{}.", True),
    ("math", "5", "Therefore \\boxed{5}. I have put it in \\boxed.", True),
    ("math", "5", "\\boxed{5} and so on \\boxed{", False),
    ("math", "6", "The answer is 5 or 6.", False),
    ("math", "18", "The answer is 18 of 20.", False),
    ("math", "1500", "The total is 1 500 dollars.", True),
    ("math", "1500", "The answer is 1,500.", True),
    ("math", "1500", "The answer is \\$1,500.00.", True),
    ("math", "3/4", "The answer is 3/4 of the cake.", True),
    ("math", "7/2", "The answer is 3 1/2 cups.", True),
    ("math", "7/2", "so she needs 3 1/2 cups", True),
    ("math", "45", "Thus the angle is 45°.", True),
    ("math", "45", "Thus the angle is $45^\\circ$.", True),
    ("math", "45", "The angle measures 45 degrees.", True),
    ("math", "0.05", "So it is 5%.", True),
    ("math", "x=2, x=3", "so $x=2$ or $x=3$.", True),
    ("math", "2", "so $x=2$ or $x=3$.", False),
    ("math", "42", "**Answer: 42**", True),
    ("math", "42", "Answer: 42 (see above, step 3)", True),
    ("math", "42", "The final answer is: 42. I used 3 steps.", True),
    ("math", "42", "Final answer = 42", True),
    ("math", "42", "the answer to part (b) is 42.", True),
    ("math", "\\frac{\\pi}{4}", "Therefore, the area is\n\n$$\n\\frac{\\pi}{4}\n$$", True),
    ("math", "x+3", "\\begin{align*} y &= x + 1 + 2 \\\\ &= x + 3 \\end{align*}", True),
    ("math", "2 \\sqrt{5}", "Answer: 2√5", True),
    ("math", "x^2 - 1", "The answer is x² − 1.", True),
    ("math", "12", "There are 12 ways.", True),
    ("math", "12", "12", True),
    ("math", "12", "12.", True),
    ("math", "12", " = 12", True),
    ("math", "12", "The number of ways is 12, where $n = 3$.", True),
    ("choice", "B", "\\boxed{\\text{(B)}}", True),
    ("choice", "C", "I choose C.", True),
    ("choice", "C", "I would pick option (c).", True),
    ("choice", "C", "Option C is correct.", True),
    ("choice", "C", "The answer: C", True),
    ("choice", "A", "A", True),
    ("choice", "A", "a.", True),
    ("choice", "A", "The answer is A.", True),
    ("choice", "A", "The answer is A because it fits.", True),
    ("choice", "D", "A and B fail. C is too small. So the answer must be D.", True),
    ("choice", "D", "Answer: a good guess would be D.", True),
    ("choice:4", "C", "It must be C. See chapter V.", True),
    ("choice:4", "C", "It must be (C), not (Z).", True),
    ("choice", "C", "Die Antwort ist C.", True),
    ("choice", "C", "答案是C", True),
    ("choice", "C", "正确答案：C。", True),
    ("choice", "C", "因此选C", True),
    ("choice", "C", "La réponse est C.", True),
    ("choice", "B", "**B**", True),
    ("choice", "B", "B) 12 cm", True),
    ("choice", "B", "<answer>(B) 12 cm</answer>", True),
    ("choice", "B", "\\boxed{A} and \\boxed{B}", False),
    ("choice", "B", "I'd say the best answer is (B).", True),
    ("choice", "B", "The correct answer is: **B. Paris**", True),
    ("choice", "B", "Answer: $\\boxed{B}$", True),
    ("choice", "I", "The answer is I.", True),
    ("choice", "B", "#### B", True),
    ("choice", "B", "Final Answer\n\nB", True),
    ("choice", "B", "Choice A is wrong. Choice B is right.", True),
    ("choice", "A", "Choice A is right. Choice B is wrong.", True),
    ("choice", "C", "The answer is not A; it is C.", True),
]


@pytest.mark.parametrize(("grader", "gold", "answer", "right"), CASES)
def test_the_answer_that_a_text_gives(grader, gold, answer, right):
    assert grade_answer(grader, answer, gold).correct is right


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        (r"\boxed{1}, \boxed{2} and \boxed{3}", "math", "1, 2, 3"),
        (r"\boxed{1} \text{ or } \boxed{1}", "math", "1"),
        (r"$x = \boxed{1}$ and $y = \boxed{2}$", "math", "1, 2"),
        ("\\boxed{1}\n\nTherefore \\boxed{2}", "math", "2"),
        (r"\boxed{1}, but rather \boxed{2}", "math", "2"),
        (r"\boxed{4 \text{ or } \boxed{6}}", "math", "6"),
        (r"It is \boxed{7}. The final answer is $8$.", "math", "8"),
        (r"It is \boxed{7}. The final answer is simple.", "math", "7"),
        ("She pays $5 now and $7 later, so $12.", "number", "12"),
        ("We use $n$ and $m$ only.", "number", None),
        ("The price is $3x$ for $x$ items", "math", "x"),
        ("so $a=1$, $b=2$ and $c=3$.", "math", "a=1, b=2, c=3"),
    ],
)
def test_what_is_extracted(text, kind, found):
    assert extract_answer(text, kind) == found


def test_only_the_options_that_a_problem_has_are_found():
    assert extract_answer("(B). See (F).", "choice", 4) == "B"
    assert extract_answer("(B). See (F).", "choice") == "F"
    assert grade_answer("choice:4", "So (B), see (E).", "B").correct
    assert not grade_answer("choice:6", "So (B), see (E).", "B").correct


@pytest.mark.parametrize("grader", ["choice:1", "choice:27", "choice:x", "choice:-4"])
def test_impossible_numbers_of_options_are_refused(grader):
    with pytest.raises(ValueError, match=r"within 2\.\.26"):
        grade_answer(grader, "A", "A")


@pytest.mark.parametrize(
    "answer",
    [
        "The answer is 17√3.",
        "The answer is 17π.",
        "So the area is 17π.",
        "The answer is 17x.",
        "The answer is √17.",
        "The answer is x ≥ 17.",
        "The answer is ±17.",
        "The answer is 17 squared.",
        "The answer is twice 17.",
        "The answer is 17 - 2",
        "The answer is 17 million.",
        "The answer is minus 17.",
        "The answer is at least 17.",
        "The answer is not 17.",
        "The answer cannot be $17$.",
        "The answer is 17–18.",
        "The answer is 17:18.",
        "So the point is (4, 17).",
        "Die Antwort ist nicht 17.",
    ],
)
def test_a_part_of_what_is_said_is_not_the_answer(answer):
    assert not grade_answer("math", answer, "17").correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("17", "The answer is 17.\n\nLet me know if you want to see step 2!"),
        ("17", "Together that is **17**.\n\nI hope this helps with part 3."),
        ("17", "There are 17 of them, since $n = 4$."),
        ("17", "It is 17, not 18."),
        ("17", "<answer>The answer is 17</answer>"),
        ("17", r"\boxed{\text{Answer: } 17}"),
        ("-17", "The answer is negative 17."),
        (r"17\sqrt{3}", "The answer is 17√3."),
        (r"17\pi", "So the area is 17π."),
        ("(4, 17)", "So the point is (4, 17)."),
        ("2x+1", "Thus $f(x) = 2x + 1$ for all $x$."),
        ("2x+1", r"\[\begin{aligned} f(x) &= x + x + 1 \\ &= 2x + 1 \end{aligned}\]"),
        (r"\text{Yes}", "Yes"),
        (r"\text{Yes}", "Answer: Yes, because 4 > 3."),
    ],
)
def test_the_answer_is_found_beside_remarks(gold, answer):
    assert grade_answer("math", answer, gold).correct


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is not C.", None),
        ("The answer is A or C.", None),
        ("Answer: A/C", None),
        ("Not C.", None),
        ("The answer is not A but C.", "C"),
        ("C, since A fails.", "C"),
        ("Only C works.", "C"),
        ("Correct: C", "C"),
        ('{"answer": "C"}', "C"),
        ("The answer is C, A and B are wrong.", "C"),
        ("option c is correct", "C"),
    ],
)
def test_one_letter_that_is_affirmed(answer, letter):
    assert extract_answer(answer, "choice", 4) == letter


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (r"\boxed{2 1/2}", "2.5", True),
        (r"\boxed{2½}", "2.5", True),
        (r"\boxed{4 000}", "4000", True),
        (r"\boxed{10^3}", "1000", True),
        (r"\boxed{10^3}", "10", False),
        (r"\boxed{4 of 9}", "4", False),
        (r"\boxed{3 = 4}", "4", False),
        (r"\boxed{4\pi}", "4", False),
        (r"\boxed{4, 9}", "4", False),
        (r"\boxed{4!}", "4", False),
    ],
)
def test_numeric_takes_whole_numbers_only(answer, gold, right):
    assert grade_answer("numeric", answer, gold).correct is right
