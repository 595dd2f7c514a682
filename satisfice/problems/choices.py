"""Finding the letter of an option: B, (b), "option B", and neither the pronoun I nor the article a.

Only the first `options` letters count, so that of four options "vol. I" names none.
"""

import re

MOST_OPTIONS = 26

_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathsf|mbox|boldsymbol|bm)(?=\s*\{)")
_LEADING = re.compile(r"[\s({\[$*\\]*(?:(?:option|choice|answer)\s*:?\s*\(?)?([A-Za-z])(?![A-Za-z'’])", re.IGNORECASE)
_CLAIM = re.compile(
    r"[\s$*:\"'“`]*(?:(?:option|choice|letter|alternative|statement|answer)\s+)?"
    r"(?:[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Za-z])(?![A-Za-z'’]))(?P<after>[^\n]{0,20})",
    re.IGNORECASE,
)
# After a letter that is an answer comes the end, a sign or one of these words; after I or a, the word is another one.
_AFTER_LETTER = re.compile(
    r"\s*(?:$|[^\w\s]|\b(?:because|as|since|and|is|are|which|for|with|due|where|while|but|not|weil|da|car|porque|perché)\b|[^\x00-\x7f])",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"\b(?:(?i:options?|choices?|select(?:ed)?|choose|chose|pick(?:ed)?|answer(?:\s{1,9}is)?|alternative|letter|go\s{1,9}with))"
    r"(?i:\s{1,9}(?:is|are|would\s{1,9}be|must\s{1,9}be|should\s{1,9}be))?\s{0,9}:?\s{0,9}(?:\(([A-Za-z])\)|([A-Z])(?![A-Za-z'’]))"
    r"|(?:选项?|选择|選擇?|選項)\s{0,9}[:：]?\s{0,9}\(?([A-Z])"
    r"|\b(?:is|be)\s{1,9}\(?([A-Z])\)?(?![\w'’])(?!\s{1,9}[a-z])"
)
_CORRECT = re.compile(
    r"(?<![\w'’])([A-Z]|(?<=option )[a-z]|(?<=choice )[a-z])\)?\s{1,9}"
    r"(?:is|must\s{1,9}be)\s{1,9}(?:the\s{1,9})?(?:correct|right|true)\b"
)
_BRACKETED = re.compile(r"\(([A-Z])\)")
_APART = re.compile(r"(?<![\w.])(?<![a-z]\.\s)([A-Z])(?=[.):](?:\s|$))|^[ \t]{0,9}([A-Z])[ \t]{0,9}$", re.MULTILINE)
_SEVERAL = re.compile(
    r"[\s(\[{*$]*(?:(?:both|either|options?|choices?)\s+)?([A-Za-z])[)\]}*$]*\s*(?:,|;|/|&|\band\b|\bor\b)\s*(?:(?:and|or)\s+)?"
    r"[(\[{*$]*(?:option\s+)?([A-Z])(?![\w'’])(?!(?:\s*(?:,|and|or)\s*[A-Z]\b)*\s+(?:is|are|was|fails?|does|cannot|has|being)\b)",
)
_NOT = re.compile(
    r"(?:\bnot|n't|\bneither|\bnor|\bnicht|\bno es|\bpas|不是)(?:\s+(?:be|option|choice|answer|the answer))*[\s(*$]*$",
    re.IGNORECASE,
)
_FIRST = re.compile(r"[\s(*$]*([A-Z])[)*$]*(?:\s*[,:]|\s+[-—–])\s+(because|since|as)?\b")
_LAST = re.compile(r"(?<=[.!?:]\s)[(*]{0,4}([A-Z])[)*]{0,4}\.?$")
_ONLY = re.compile(r"\b[Oo]nly\s+(?:option\s+)?\(?([A-Z])\)?(?![\w'’])|\b[Cc]orrect\s*:\s*\(?([A-Z])\)?(?![\w'’])")
_ALONE = re.compile(r"[\s(\[{*$\"'`“]*([A-Za-z])[\s)\]}.*$:\"'`”]*")


def leading_letter(text: str, options: int = MOST_OPTIONS) -> str | None:
    """The letter with which a box or a tag begins, as a capital."""
    match = _LEADING.match(re.sub(r"[{}]", "", _FONT.sub("", text)))
    return _capital(match[1], options) if match else None


def letter_after(claim: str, options: int = MOST_OPTIONS) -> str | None:
    """The letter that a claim such as "B, because A fails", which follows "the answer is", states, as a capital."""
    plain = re.sub(r"[{}]", "", _FONT.sub("", claim[:200]))
    if several(plain, options):
        return None
    match = _CLAIM.match(plain)
    if match and (match[1] or _AFTER_LETTER.match(match["after"])):
        letter = _capital(match[1] or match[2], options)
        if letter:
            return letter
    sentence = re.split(r"[.!?](?=\s|$)|\n", plain, maxsplit=1)[0]
    apart = [
        found
        for found in re.findall(r"(?<![\w'’])\(?([A-Z])\)?(?![\w'’])(?!\s+[a-z])", sentence)
        if _capital(found, options)
    ]
    return apart[-1] if apart else None


def several(claim: str, options: int = MOST_OPTIONS) -> bool:
    """Whether a claim begins with two letters, "A or B", "B, C", which answers no question with one right option."""
    match = _SEVERAL.match(re.sub(r"[{}]", "", _FONT.sub("", claim[:200])))
    letters = {_capital(letter, options) for letter in match.groups()} if match else set()
    return len(letters) == 2 and None not in letters


def letter_apart(text: str, options: int = MOST_OPTIONS) -> str | None:
    """The last option that a text names without saying that it is the answer: "(C)", "option C", "C." or "c" alone."""
    if match := _ALONE.fullmatch(text[:100]) if len(text) <= 100 else None:
        return _capital(match[1], options)
    text = text.rstrip()
    for pattern in (_CORRECT, _NAMED, _ONLY, _BRACKETED, _APART, _LAST):
        letters = [
            next(group for group in match.groups() if group)
            for match in pattern.finditer(text)
            if not _NOT.search(
                text, max(0, match.start() - 40), match.start() + len(match[0]) - len(match[0].lstrip("("))
            )
            and not _NOT.search(match[0].rstrip(")")[:-1])
        ]
        letters = [capital for letter in letters if (capital := _capital(letter, options))]
        if pattern is _NAMED and len(set(letters)) > 1:
            # "A is right ... B is right": bracketed letters may say which; the last named one stands otherwise.
            bracketed = [found for found in _BRACKETED.findall(text) if _capital(found, options)]
            return bracketed[-1] if bracketed else letters[-1]
        if letters:
            return letters[-1]
    first = _FIRST.match(text[:100])
    return _capital(first[1], options) if first and (first[1] not in "AI" or first[2]) else None


def _capital(letter: str, options: int) -> str | None:
    capital = letter.upper()
    return capital if ord(capital) - ord("A") < options else None
