r"""Finding the answer in what a model wrote after thinking.

Order of search, the same for every kind of answer:

1. The last `\boxed{...}` or `\fbox{...}`, with those before it that "and" or a comma joins to it. Where the last box is
   not closed, the response broke off inside its answer and nothing is extracted: an earlier box would be credit for an
   answer that was being revised. An empty box only repeats the instruction.
2. The last `<answer>...</answer>`, then a last line `#### 42`.
3. What follows the last "answer is", "answer:", "answer =", a heading such as "Final Answer", or the like in other
   languages.
4. As a last resort, where a formula or number is expected: the last formula, or the last number where it stands after
   that one; a text that is one formula without dollar signs. The last option letter that stands apart where a choice
   is expected, the text itself where free text is expected and it is a single line.

Every pattern takes time linear in the length of the text, because this code runs beside the event loop on whatever
a model wrote.
"""

import re
from typing import Literal

from satisfice.problems.choices import MOST_OPTIONS, leading_letter, letter_after, letter_apart, several
from satisfice.problems.formulas import Formula, broken_dollars, formulas, joined, last_group

AnswerKind = Literal["math", "number", "choice", "text"]
"""What an answer is expected to be; it decides the last resort of the search."""

THOUSANDS = r"(?:\d{1,3}(?:(?:,\\!|\{,\}|\\,|,)\d{3})+(?!\d))"
"""A number whose digits are grouped by commas or by LaTeX's ways to write one."""

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
_OWN_CLAIM = re.compile(
    r"\s*(?:\\text\s*\{\s*)?(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|ans)\b\.?\s*(?:is\b|:|=)\s*(?:is\s*)?(\}?)\s*(?=\S)",
    re.IGNORECASE,
)
_OPEN = re.compile(r"\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"\s*([\w\\(+\-−.][^\s$]*)")
_PLACEHOLDER = re.compile(r"\s*(?:(?:your |the )?(?:final )?answer(?: here)?|\.\.\.|…|\\[cl]?dots)?\s*", re.IGNORECASE)

_SPACES = r"(?:\s|\$|\\[()\[\],;:! ]|~|\\q?quad(?![A-Za-z])|\.(?=\s*\$))*"
_LABEL = r"(?:(?:[A-Za-z]\w?(?:_\{?\w{1,3}\}?)?|\([a-z,\s]{1,12}\))\s*(?:=|\\in\b|:)\s*)?"
_BETWEEN_BOXES = re.compile(
    rf"{_SPACES}(?:[,;]?{_SPACES}(?:[a-z]{{2,15}}\s+)?(?:and|or|&|和|或|und|et|y|\\text\s*\{{[^{{}}]{{0,30}}\b(?:and|or)\b[^{{}}]{{0,10}}\}})|[,;]|)"
    rf"{_SPACES}{_LABEL}{_SPACES}"
)
_CORRECTION = re.compile(
    r"\b(?:no|not|wait|hm+|rather|instead|actually|sorry|oops|wrong|better|correction)\b", re.IGNORECASE
)

_CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]{1,30}\|>(?:user|assistant|system)?|</s>")
_LAST_TAG = re.compile(r"</(?:final_?)?answer>", re.IGNORECASE)
_OPENING_TAG = re.compile(r"<(?:final_?)?answer>", re.IGNORECASE)
_HASHES = re.compile(r"^[ \t]{0,3}####[ \t]*(\S[^\n]{0,200})$", re.MULTILINE)
_HASHED_VALUE = re.compile(r"[-+−(\[{\\$€£₹]*[\d\\.]|[A-Za-z][\w ]{0,3}$|\S+\s*=|[\[(].*[\])]$")

_ENGLISH = r"\b(?:answers?|ans\b\.?)[\"'”]?(?:\s{1,9}(?:to|for)\b[^.:\n]{0,100}?)?"
_ELSEWHERE = (
    r"\b(?:antwort|lösung|ergebnis|endergebnis|réponse|reponse|respuesta|resposta|risposta|odpowied[źz]|odpověď|svar(?:et)?|"
    r"antwoord|vastaus|cevap|yanıt|răspuns(?:ul)?|válasz|jawaban|ответ|відповідь|відповіддю|відповідь)"
    r"(?:\s{1,9}(?:finale?|correcte?|correcta|final|correta|corretta|finală|końcowa|akhir|richtige))?"
)
_COPULA = (
    r"\b(?:is|are|was|ist|lautet|sind|beträgt|est|sont|es|son|é|são|è|sono|to|brzmi|je|er|är|dir|adalah|equals|vale|"
    r"vaut|este)\b"
)
_PHRASE = re.compile(
    rf"(?:{_ENGLISH}\s{{0,9}}(?:\b(?:is|are|was|equals)\b\s{{0,9}}[:：]?|[:：=])|"
    rf"{_ELSEWHERE}\s{{0,9}}(?:{_COPULA}\s{{0,9}}[:：]?|[:：=—–-])|"
    r"(?:答案|答|答え|解答|結果|结果|정답|답|คำตอบ|đáp án|đáp số|الجواب|الإجابة|الاجابة|उत्तर|תשובה|התשובה|απάντηση)"
    r"\s{0,3}(?:(?:应该|應該)?(?:是|为|為|は|은|는|คือ|là|هو|هي|है|היא|είναι)\s{0,9}[:：]?|[:：=])"
    r")\s{0,9}(?!\s{0,9}not\b|\s{0,9}(?:nicht|pas|no|niet|inte|ikke|nie|не)\s{1,3}[$\\\d(−-]|不)",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"^[ \t#*_>-]{0,9}(?:(?:the\s)?(?:final|correct|my)\s)?"
    r"(?:answer|result|solution|antwort|réponse|respuesta|resposta|risposta|ответ|答案|最终答案|答)"
    r"(?:\s(?:finale?|final))?[ \t]{0,9}[:：]?[ \t#*_]{0,9}\n\s{0,9}",
    re.IGNORECASE | re.MULTILINE,
)
_FINAL = re.compile(
    r"\bfinal answer\s{0,9}(?:\bis\b\s{0,9}:?|:)\s{0,9}(?=\$|\\\(|\\\[|[-−+]?\d)(?!\$?\\boxed)", re.IGNORECASE
)
_FILLER = re.compile(
    r"(?:(?:therefore|thus|hence|then|so|now|indeed|simply|just|clearly|also|still|exactly|precisely|approximately|roughly|"
    r"about|around|nearly|almost|approx\.?|ca\.?|equal\s+to|given\s+by|found\s+to\s+be|going\s+to\s+be|daher|also|somit|"
    r"donc|environ|por\s+tanto|por\s+lo\s+tanto|entonces|portanto|quindi|ungefähr|etwa|unique|simplified|≈|~|\\approx)\s{0,3}[,:]?\s{1,9}|[,:]\s{0,9}){1,9}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(
    r"(?<![ap]\.m)(?<!\b[ap])(?<!\bapprox)(?<!\bca)(?<!\bNo)(?<!\bDr)(?<!\bMr)(?<!\bvs)(?<!\bSt)(?<!i\.e)(?<!e\.g)[.!](?=\s|$)|[。！]|\n"
)

_SIGNED_MONEY = re.compile(r"([-−+])\s?\\?[$€£₹¥](?=\s?[\d.])")
_ANY_FORMULA = re.compile(r"\$[^$]*\$|\\\(.*?\\\)")
_NEGATED = re.compile(
    r"(?:\b(?:not|never|cannot|nicht|pas|no|non|não|niet|inte|ikke|nie|не|rather\s+than|instead\s+of)\b|n't\b|不是?|ではな)"
    r"(?:\s+(?:be|equal(?:\s+to)?|simply|just|exactly|the|actually))*[\s:$\\(\[]*$",
    re.IGNORECASE,
)
_BOUNDED = re.compile(
    r"\b(?:not|none|neither|never|either|between|(?:more|less|greater|fewer|larger|smaller|rather)\s+than|"
    r"at\s+(?:least|most))\b|n't\b",
    re.IGNORECASE,
)
_MINUS = re.compile(r"\b(?:minus|negative)\s*$", re.IGNORECASE)
_COURTESY = re.compile(
    r"(?:^|(?<=[.!?\n]))[ \t]*[*_]*(?:(?:please\s+)?let me know|i hope|hope (?:this|that|it)|feel free|"
    r"if you (?:have|need|would|want|'d)|would you like|do you (?:want|have|need)|please (?:ask|tell))\b",
    re.IGNORECASE | re.MULTILINE,
)
_CLAUSE = re.compile(
    r",?\s(?:since|because|whenever|when|where|if|as|for\s+(?:all|every|any|each|some))\s", re.IGNORECASE
)
_VERB = re.compile(r"\b(?:is|are|equals?|gives?|gets?|have|has|had|becomes?|was|be|makes?|so|then)\b", re.IGNORECASE)
_OPERATOR_BEFORE = re.compile(r"(?:[√∛^_/*+×·±≥≤<>≠!|])$")
_BESIDE = re.compile(r"%|°|[a-z]{1,2}[²³]|-[A-Za-z].*|[^\x00-\x7f√π×·÷±²³¹⁰-⁹₀-₉≤≥≠<>–—].*")
_RATIO_BEFORE = re.compile(r"(?<![\d:])\d+\s?:\s?$")
_BRACKET_BEFORE = re.compile(r"[(\[][^()\[\]{}\n]*,\s*$|[(\[]\s*$")
_BRACKET_AFTER = re.compile(r"\s*(?:,[^()\[\]{}\n]*)?[)\]]")
_GOES_ON = re.compile(
    r"\s*(?:[+×*·÷/±^<>≤≥≠&–—-]\s?(?:[\d(√π$\\]|[A-Za-z](?![A-Za-z]))|[²³^√])|\s*;\s?\d+[\s.]*$|"
    r"\s+(?:times|plus|minus|over|squared|cubed|factorial|choose|hundred|thousand|million|billion|trillion|dozens?|pi|"
    r"(?:more|less|fewer)\s+than|to\s+\d+|divided|modulo|multiplied|raised)\b"
)
_COMES_FROM = re.compile(
    r"(?:\b(?:twice|thrice|half\s+of|double|triple|root\s+of|log|ln|times|plus|from|over|multiples?\s+of|power\s+of|factorial\s+of|"
    r"(?:square|cube)\s+of)\s+(?:the\s+)?|(?:[+×*·÷^√±≥≤<≠]|(?<![-=])>)\s?)[$\\]*$",
    re.IGNORECASE,
)
_STUCK_BEFORE = re.compile(r"[^\s(\[{\"'*$€£¥₹#:,;~≈|]+$")
_STUCK_AFTER = re.compile(r"(?:[^\s.,;:!?)\]}\"'*`$€£|]|[.,:!](?=\d)|\s?[√π])+")
_NUMBER = re.compile(
    rf"""
    (?:(?<![\w)\]}}.])[-+−])?  # a sign, but not the minus of a difference
    (?: (?:(?<!\d)\d+\s?)?\\[dtc]?frac\s?\{{-?\d+\}}\{{\d+\}}
      | (?<![A-Za-z_\d.]) (?: \d{{1,2}}(?:,\d{{2}})+,\d{{3}}(?!\d) | \d+[ ]\d{{1,3}}/\d{{1,4}}(?![\d.])
          | {THOUSANDS}(?:\.\d+)?
          | \d{{1,3}}(?:[\u00a0\u202f\u2009 ]\d{{3}})+(?!\d) | \d+(?:[.,]\d+)?(?:\s?/\s?\d+)? | \.\d+ )
        (?: [eE][-+]?\d+ | \s?(?:\\times|\\cdot|×)\s?10\s?\^\s?(?:\{{\s?[-+−]?\d+\s?\}}|[-+−]?\d+) )?
    )
    """,
    re.VERBOSE,
)
_NUMBER_AFTER = re.compile(rf"(?:\b(?:is|are|equals|be)\b|=)\s{{0,9}}[^\d\n]{{0,30}}?({_NUMBER.pattern})", re.VERBOSE)
_HEDGE = re.compile(
    r"[^\d]{0,3}\s*(?:[A-Za-z%°]{1,12}\s*)?(?:,\s*(?:and|or)?|\band\b|\bor\b|\bof\b|\bout of\b)\s*[-−]?[$€£]?\d"
)
_RESULT = re.compile(r"\b(?:therefore|thus|hence|so|is|are|equals|we get|gives|by|be)\b|=", re.IGNORECASE)
_PROSE_AFTER = re.compile(r"\s*(?:$|[(;]|,\s*[A-Za-z]{2}|\s[A-Za-z]{3})")
_TIME = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?(?:\s?[ap]\.?\s?m\b\.?)?", re.IGNORECASE)
_NEGATION = re.compile(r"\bnot\b|n't\b")
_PERCENT = re.compile(r"\s?(?:\\?%|percent\b|pct\b)")

_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathsf|mbox)(?=\s*\{)")
_WORDS = re.compile(r"[^\W\d_]{3,}")
_FORMULA_WORDS = re.compile(
    r"\\[A-Za-z]+\*?|\{[A-Za-z]*matrix\}|\{(?:cases|array|aligned)\}(?:\{[lcr|]*\})?|"
    r"\b(?:sin|cos|tan|cot|sec|csc|log|ln|exp|lim|max|min|gcd|lcm|mod|sqrt|and|or|arcsin|arccos|arctan|percent|pct|"
    r"infinity|where|for|all)\b",
    re.IGNORECASE,
)
_TEXT_ARGUMENT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{[^{}]*\}")


def extract_answer(text: str, kind: AnswerKind = "math", options: int = MOST_OPTIONS) -> str | None:
    """The answer that `text` gives, as it is written there, or None where it gives none.

    Args:
        text: what was written after thinking, and nothing of the thinking itself.
        kind: what is expected. "math": a formula; a bare number only where a sentence concludes with it. "number": also
            the last number. "choice": the letter of an option, returned as a capital. "text": also the whole text, if
            it is a single line.
        options: how many options a choice has; letters after the last one are not looked for.
    """
    if "<" in text:
        text = _CONTROL_TOKEN.sub("\n", text)
    boxes = _boxes(text)
    if boxes is None:
        return None  # the last box is not closed
    if boxes and not (kind != "choice" and (later := _final_claim(text))):
        if kind == "choice":
            letters = {leading_letter(box, options) for box in boxes}
            return letters.pop() if len(letters) == 1 else None
        boxes = [_without_claim(box) for box in boxes]
        return joined(boxes) if len(boxes) > 1 else boxes[0]
    if boxes:
        return later

    text = text.replace("**", "").replace("__", "")
    if tagged := _tagged(text):
        if kind == "choice":
            return leading_letter(tagged, options) or letter_apart(tagged, options)
        tagged = _without_claim(tagged)
        return tagged if kind == "text" else _of_formula(tagged)
    if kind == "choice":
        return _choice(text, options)
    if hashed := _hashed(text):
        return _of_formula(hashed)
    if (start := _claimed_from(text)) is not None and (claim := _claim(text, start, kind)):
        return _stated_number(claim) if kind == "number" else claim
    if kind == "text":
        line = text.strip()
        return line if line and "\n" not in line else None
    return _last_resort(text, kind)


def last_box(text: str) -> str | None:
    r"""The content of the last `\boxed` or `\fbox`; None where there is none, or it is empty or not closed.

    `\boxed 42`, without braces, holds everything up to the next space or dollar sign.
    """
    openings = [match.end() for match in _BOX.finditer(text)]
    return (_box(text, openings[-1])[0] or None) if openings else None


def first_number(text: str) -> str | None:
    """The number that a short claim such as "x = 72 clips" states: the first one after its last equals sign."""
    number = _NUMBER.search(text.rsplit("=", 1)[-1]) or _NUMBER.search(text)
    return number[0] if number else None


def unstyled(text: str) -> str:
    r"""`text` without the commands that only choose a font, such as `\text`; all braces go with them."""
    return re.sub(r"[{}]", "", _FONT.sub("", text)) if _FONT.search(text) else text


def _without_claim(content: str) -> str:
    """What a box or a tag holds, without an "answer:" or "the answer is" of its own."""
    match = _OWN_CLAIM.match(content)
    return content[match.end() :] if match and bool(match[1]) == ("{" in match[0]) else content


def _boxes(text: str) -> list[str] | None:
    """The contents of the boxes that are the answer, in order; None where the last one is not closed."""
    openings = list(_BOX.finditer(text))
    last = True
    group: list[str] = []
    before = 0
    for opening in reversed(openings):
        content, end = _box(text, opening.end())
        if content is None:
            if last and not _echo(text, opening.end()):
                return None
            if group:
                break
            continue
        if not content or _PLACEHOLDER.fullmatch(content):
            continue
        last = False
        if group:
            between = text[end:before]
            if (
                end > before
                or len(between) > 80
                or _CORRECTION.search(between)
                or not _BETWEEN_BOXES.fullmatch(between)
            ):
                break
            if not between.strip() and "\n" in between:
                break
        group.insert(0, content)
        before = opening.start()
        if len(group) == 50:
            break
    return group


def _box(text: str, start: int) -> tuple[str | None, int]:
    """What the box whose command ends at `start` holds, and where it ends; None where it is not closed."""
    if unbraced := _UNBRACED.match(text, start):
        return unbraced[1].rstrip(".,;:"), unbraced.end()
    if not (opening := _OPEN.match(text, start)):
        return None, start
    depth = 1
    for brace in _BRACE.finditer(text, opening.end()):
        if brace[0] in "{}":
            depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[opening.end() : brace.start()].strip(), brace.end()
    return None, len(text)


def _echo(text: str, start: int) -> bool:
    r"""Whether a box without content names the command, as in "put it in \boxed."."""
    return _OPEN.match(text, start) is None


def _final_claim(text: str) -> str | None:
    """What a "final answer is $5$" says that stands after the last box: the box was a step on the way to it."""
    finals = list(_FINAL.finditer(text))
    if not finals:
        return None
    boxes = [match.end() for match in _BOX.finditer(text)]
    if finals[-1].end() < boxes[-1]:
        return None
    return _claim(text, finals[-1].end(), "math")


def _tagged(text: str) -> str | None:
    # From the last closing tag back to the opening one before it.
    closings = [match.span() for match in _LAST_TAG.finditer(text)]
    if not closings:
        return None
    openings = [match.end() for match in _OPENING_TAG.finditer(text) if match.end() <= closings[-1][0]]
    return text[openings[-1] : closings[-1][0]].strip() or None if openings else None


def _hashed(text: str) -> str | None:
    """What stands after the last "####" at the start of a line, unless it is a heading."""
    lines = [match[1].strip() for match in _HASHES.finditer(text)]
    return lines[-1] if lines and _HASHED_VALUE.match(lines[-1]) and not lines[-1].endswith(":") else None


def _claimed_from(text: str) -> int | None:
    """Where the last claim of an answer begins."""
    ends = [match.end() for pattern in (_PHRASE, _HEADING) for match in pattern.finditer(text)]
    return max(ends) if ends else None


def _choice(text: str, options: int) -> str | None:
    start = _claimed_from(text)
    if start is not None and several(text[start : start + 200], options):
        return None
    letter = None if start is None else letter_after(text[start : start + 200], options)
    if letter is None and (hashes := _HASHES.findall(text)):
        letter = letter_apart(hashes[-1], options)
    return letter or letter_apart(text, options)


def _claim(text: str, start: int, kind: AnswerKind) -> str | None:
    """What is said from `start` on: the formulas that stand there, else the rest of the sentence."""
    if filler := _FILLER.match(text, start):
        start = filler.end()
    rest = text[start : start + 3000]
    found = formulas(rest)
    if found and found[0].start <= len(rest) - len(rest.lstrip(" \t\n")):
        return _of_formulas(rest, _first_group(rest, found))
    end = _SENTENCE_END.search(rest)
    sentence = rest[: end.start() if end else len(rest)]
    if kind != "text" and (time := _TIME.match(sentence.strip())):
        return time[0]
    inside = [formula for formula in found if formula.end <= len(sentence) + 1]
    # "The answer is 5, where $n > 2$": the number that was said first is the answer.
    if inside and kind != "text" and not _NUMBER.match(sentence.strip(" $")):
        # "The largest $n$ is 34": the number after the last formula is the answer.
        if number := _NUMBER_AFTER.search(sentence, inside[-1].end):
            return number[1]
        return _of_formulas(rest, last_group(rest, inside))
    return sentence.strip(" \t*`\"'“”,;:") or None


def _first_group(text: str, found: list[Formula]) -> list[Formula]:
    group = found[:1]
    for formula in found[1:]:
        if last_group(text, [group[-1], formula]) == [formula]:
            break
        group.append(formula)
    return group


def _of_formulas(text: str, group: list[Formula]) -> str | None:
    if len(group) > 1:
        return joined([formula.text for formula in group])
    unit = _PERCENT.match(text, group[0].end)
    return (group[0].text.rstrip(" .,;").removeprefix("=").lstrip() + (unit[0] if unit else "")) or None


def _of_formula(text: str) -> str | None:
    """What a short text says: its formula, where it is one between dollar signs."""
    found = formulas(text)
    return _of_formulas(text, last_group(text, found)) if found else text.strip() or None


def _stated_number(claim: str) -> str:
    claim = _SIGNED_MONEY.sub(r"\1", claim)
    if (
        (number := _NUMBER.match(claim))
        and not _whole(number)
        and not _goes_on(number)
        and _PROSE_AFTER.match(claim, number.end())
    ):
        return claim if _HEDGE.match(claim, number.end()) else number[0]
    # The first number of "\sqrt{16}" is not what it states: what looks like a formula is left to the grader.
    if (
        "\\" in claim.replace("\\$", "")
        or "^" in claim
        or "{" in claim
        or re.search(r"[A-Za-z]\s?[-+*/(]|[\d)]\s?[*(]", claim)
    ):
        return claim
    number = _NUMBER.search(claim.rsplit("=", 1)[-1]) or _NUMBER.search(claim)
    if number is None or _BOUNDED.search(number.string, 0, number.start()):
        return claim
    if _goes_on(number):
        return claim
    if whole := _whole(number):
        return number.string[slice(*whole)]
    if _MINUS.search(number.string, 0, number.start()) and number[0][0] not in "-−+":
        return "-" + number[0]
    return claim if _HEDGE.match(number.string, number.end()) or "≡" in claim else number[0]


def _whole(number: re.Match[str]) -> tuple[int, int] | None:
    """Where that begins and ends which a number is only part of, 2√3, n≥42 or (3, 4); None where it stands alone."""
    text, (start, end) = number.string, number.span()
    opening, closing = (
        _BRACKET_BEFORE.search(text, max(0, start - 60), start),
        _BRACKET_AFTER.match(text, end, end + 60),
    )
    if opening and closing and ("," in opening[0] or "," in closing[0]):
        return opening.start(), closing.end()
    if ratio := _RATIO_BEFORE.search(text, max(0, start - 10), start):
        return ratio.start(), end
    before = _STUCK_BEFORE.search(text, max(0, start - 30), start)
    after = _STUCK_AFTER.match(text, end)
    if after is not None and _BESIDE.fullmatch(after[0]):
        after = None
    if after is None and (before is None or not _OPERATOR_BEFORE.search(before[0])):
        return None
    return before.start() if before else start, after.end() if after else end


def _goes_on(number: re.Match[str]) -> bool:
    """Whether words or signs beside a number make another number of it: "twice 42", "42 squared", "42 - 2"."""
    text, (start, end) = number.string, number.span()
    return bool(_GOES_ON.match(text, end) or _COMES_FROM.search(text, max(0, start - 40), start))


def _unsaid(text: str) -> str:
    """`text` without what follows its answer: an offer of help, or a clause such as "since $n = 4$"."""
    if (courtesy := _COURTESY.search(text)) and text[: courtesy.start()].strip():
        text = text[: courtesy.start()]
    starts = [match.end() for match in _SENTENCE_END.finditer(text.rstrip(" .\n"))]
    start = starts[-1] if starts else 0
    if len(text) - start > 1000:
        return text
    for clause in _CLAUSE.finditer(text, start):
        after = _ANY_FORMULA.sub(" ", text[clause.end() :])
        before = text[start : clause.start()]
        if not _VERB.search(after) and (_NUMBER.search(before) or formulas(before)):
            return text[: clause.start()]
    return text


def _negation(text: str, place: int) -> int | None:
    """Where a "not" begins that stands directly before `place`, None where there is none."""
    match = _NEGATED.search(text, max(0, place - 40), place)
    return None if match is None else match.start()


def _said_before(text: str, end: int) -> str:
    """The part before `end` of the sentence that goes on there: of "43, not 42" it is "43"."""
    return _SENTENCE_END.split(text[max(0, end - 500) : end])[-1]


def _last_resort(text: str, kind: AnswerKind, negated: bool = False) -> str | None:
    """The last formula or number, or the text itself where it is a formula."""
    text = _unsaid(broken_dollars(text))
    if "$" in text:
        text = _SIGNED_MONEY.sub(r"\1", text)
    found = formulas(text)
    if found and (end := _negation(text, found[-1].start)) is not None:
        return None if negated else _last_resort(_said_before(text, end), kind, negated=True)
    if kind == "number":
        found = [formula for formula in found if re.search(r"\d|\\(?:pi|infty|emptyset)", formula.text)]
    if not found and not negated and _is_bare_formula(text):
        return text.strip()
    after = found[-1].end if found else 0
    number = None
    for match in _NUMBER.finditer(text, after):
        number = match
    if number and (end := _negation(text, number.start())) is not None:
        return None if negated else _last_resort(_said_before(text, end), kind, negated=True)
    percent = _PERCENT.match(text, number.end()) if number else None
    whole = _whole(number) if number else None
    stated = number[0] + (percent[0] if percent else "") if number else None
    end = number.end() if number else 0
    if number and whole:
        stated, end = text[slice(*whole)], whole[1]
    elif number and _goes_on(number):
        stated = number = None
    if kind == "number" and number and (not found or not re.fullmatch(r"[^\w]*", text[after : number.start()])):
        return stated
    if found:
        return _of_formulas(text, last_group(text, found))
    if kind == "math" and number is not None:
        # Only the end of a sentence that concludes.
        sentence = _SENTENCE_END.split(text.rstrip(" .\n"))[-1]
        tail = text[end:]
        concludes = _RESULT.search(sentence) and not _NEGATION.search(sentence)
        if concludes and len(tail) < 40 and re.fullmatch(r"[\W_]*(?:percent|pct)?[\W_]*", tail):
            return stated
    return None


def _is_bare_formula(text: str) -> bool:
    line = text.strip()
    if not line or _BOX.search(line) or len(line) > 300 or "\n\n" in line or not re.search(r"[\d\\=]", line):
        return False
    plain = _FORMULA_WORDS.sub(" ", _TEXT_ARGUMENT.sub(" ", line))
    return not _WORDS.search(plain) and not re.search(r"\b[a-z]{2}\b\s+\b[a-z]{2}\b|\bI\b", plain)
