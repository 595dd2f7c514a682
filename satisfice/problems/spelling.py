r"""One spelling for what people and models write in many: Unicode signs, LaTeX commands that only style, variants.

`respell` changes no value. What is left has ASCII digits and signs, no dollar signs, no style commands, no spacing
commands, one command for each sign (`\leq`, not `\le`, `\leqslant`, `<=` or the Unicode sign), and braces around
every argument of `\frac` and `\sqrt`.
"""

import re
import unicodedata

LONGEST = 2000
"""Characters; a longer text is left as it is. No answer is so long, and the patterns here are for short ones."""

_SIGNS = {
    "−": "-", "﹣": "-", "－": "-", "‒": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/",
    "⁄": "/", "∕": "/", "≤": r"\leq ", "⩽": r"\leq ", "≥": r"\geq ", "⩾": r"\geq ", "≠": r"\neq ", "≈": r"\approx ",
    "≡": r"\equiv ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∉": r"\notin ", "∅": r"\emptyset ", "⌀": r"\emptyset ", "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ",
    "′": "'", "’": "'", "∠": r"\angle ", "△": r"\triangle ", "⊂": r"\subset ", "⊆": r"\subseteq ", "∖": r"\setminus ",
    "→": r"\to ", "…": r"\ldots ", "⋯": r"\ldots ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "ℓ": r"\ell ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "，": ",", "、": ",", "；": ";", "：": ":", "∶": ":", "。": ".",
    "？": "?", "＄": "$", "¢": " cents",
    "ϕ": r"\phi ", "ϵ": r"\epsilon ", "µ": r"\mu ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "\u200b": "",
    "\ufeff": "", "\u2061": "", "\u2062": "", "\u2063": "", "“": '"', "”": '"', "‘": "'",
}  # fmt: skip
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
    "upsilon phi chi psi omega"
)
_SIGNS |= {chr(0x3B1 + place): rf"\{name} " for place, name in enumerate(_GREEK.split())}
_SIGNS |= {sign: rf"\{name} " for sign, name in zip("ΓΔΘΛΞΠΣΦΨΩ", ["Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"], strict=True)}  # fmt: skip # noqa: E501
_TRANSLATION = str.maketrans(_SIGNS)

_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|\w))")
_ROOT_INDEX = {"√": "", "∛": "[3]", "∜": "[4]"}
_RAISED = re.compile("[⁰¹²³⁴-⁹⁺⁻⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀-₉₊₋₍₎]+")
_LEADING_DASH = re.compile(r"(^|[(\[{,=:]\s*)[‐‑–—](?=\s*[\d.\\$∞π√])")
_SMALL_FRACTION = re.compile("([⁰¹²³⁴-⁹]+)[⁄/∕]([₀-₉]+)")

_PUNCTUATED = re.compile(r",\s*\\!\s*(?=\d)|\s*\{,\s*\}\s*(?=\d)")
_SPACING = re.compile(
    r"(?<!\\)\\[,;:> ]|(?<!\\)~|\\(?:quad|qquad|enspace|thinspace|hspace\{[^{}]*\}|hfill|newline)(?![A-Za-z])"
)
_DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")
_SIZES = re.compile(
    r"\\(?:left|right|[Bb]igg?[lrm]?)(?![A-Za-z])\s*\.?(?=\s|[^\s.\d]|$)|"
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|boldmath|bfseries|itshape|bf|it|rm|sf|tt|tiny|small|normalsize|large|Large|LARGE|huge|Huge)"
    r"(?![A-Za-z])\s*"
)
_INVISIBLE = re.compile(r"\\[vh]?phantom\s*\{[^{}]*\}|\\(?:label|tag\*?)\s*\{[^{}]*\}")
_END_MARK = re.compile(r"(?:\s|\\(?:blacksquare|square|Box|qed|checkmark|qquad|quad|,|;|!)(?![A-Za-z])|[✓✔■□∎])+$")
_ROW_SPACE = re.compile(r"(\\\\)\s*\[-?[\d.]+\s*(?:pt|em|ex|mm|cm)\]")
_MONEY_SIGN = re.compile(
    r"\\(?:text|textrm|mathrm)\s*\{\s*(\\\$|[$€£₹¥₩₽₺₪₦₫₱]|Rs\.?|US\\?\$|USD|EUR|GBP|INR|CHF)\s*\}(?=\s*[-+\d.])|\\(mathdollar|textdollar|pounds|textsterling|euro|texteuro|textrupee|yen|cent|textcent)(?![A-Za-z])"
)
_MONEY_SIGNS = {
    "mathdollar": r"\$", "textdollar": r"\$", "pounds": "£", "textsterling": "£", "euro": "€", "texteuro": "€",
    "textrupee": "₹", "yen": "¥", "cent": r"\text{ cents}", "textcent": r"\text{ cents}",
}  # fmt: skip
_STYLED = re.compile(
    r"\\(?:boldsymbol|bm|pmb|emph|underline|uline|mathbf|mathit|mathsf|mathtt|mathnormal|textcolor\{[^{}]*\}|"
    r"colorbox\{[^{}]*\}|color\{[^{}]*\}|color(?:\[[^\]]*\])\{[^{}]*\}|boxed|fbox|ensuremath)"
    r"(?![A-Za-z])\s*"
)
_FRACTION = re.compile(r"\\(?:[dtcs]?frac|nicefrac)(?![A-Za-z])\s*")
_BARE_ARGUMENT = re.compile(r"(\\(?:frac|sqrt(?:\[\w+\])?)) *([A-Za-z0-9]|\\pi(?![A-Za-z]))")
_SECOND_ARGUMENT = re.compile(r"(\\frac\{[^{}]*\}) *([A-Za-z0-9]|\\pi(?![A-Za-z]))")
_FUNCTION_ROOT = re.compile(r"(?<![A-Za-z\\])sqrt\s*(?:\(([^()]*)\)|\{([^{}]*)\})")
_WORD_SIGN = re.compile(r"(?<![A-Za-z\\])(pi|[Ii]nfinity|infty|inf|(?:negative|minus)\s+infinity)(?![A-Za-z])")
_FUNCTION = re.compile(
    r"(?<![A-Za-z\\{])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp)(?=\s*[\d(^_\\{]|\s+[a-z](?![A-Za-z]))"
)
_NATURAL = re.compile(r"\\log\s*_\s*(?:\{\s*e\s*\}|e(?![A-Za-z]))")
_PRIME = re.compile(r"\s*\^\s*(?:\{\s*((?:\\prime\s*)+)\}|(\\prime)(?![A-Za-z]))")
_NEGATED = re.compile(r"\\not\s*(?:(=)|\\(in|equiv)(?![A-Za-z]))")
_BARE_POWER = re.compile(r"\^\s*-\s*(\d+)")
_ONE_LETTER_FONT = re.compile(r"\\(?:mathrm|text|textrm|operatorname|mathit)\{([A-Za-z])\}(?![A-Za-z])")
_TEXT_NUMBER = re.compile(r"\\(?:text|mathrm)\s*\{\s*([-+]?[\d.,/]*\d)\s*\}")
_TEXT_FONT = re.compile(
    r"\\(?:textbf|textit|textrm|textsf|texttt|textnormal|textup|textsc|mbox|hbox|operatorname)\s*(?=\{)"
)
_SYNONYM = re.compile(
    r"\\(?:varnothing|ne|le|leqslant|leqq|ge|geqslant|geqq|lt|gt|degree|degrees|textdegree|infin|R|Z|N|Q|C|ast|colon|lbrace|"
    r"rbrace|lbrack|rbrack|dots|cdots|textasciitilde|land|lor|vert|lvert|rvert|mid|divisionsymbol|div|percent)(?![A-Za-z])"
)
_SYNONYMS = {
    r"\varnothing": r"\emptyset", r"\ne": r"\neq", r"\le": r"\leq", r"\leqslant": r"\leq", r"\leqq": r"\leq",
    r"\ge": r"\geq", r"\geqslant": r"\geq", r"\geqq": r"\geq", r"\lt": "<", r"\gt": ">", r"\degree": r"^\circ",
    r"\degrees": r"^\circ", r"\textdegree": r"^\circ", r"\infin": r"\infty", r"\R": r"\mathbb{R}",
    r"\Z": r"\mathbb{Z}", r"\N": r"\mathbb{N}", r"\Q": r"\mathbb{Q}", r"\C": r"\mathbb{C}", r"\ast": "*",
    r"\colon": ":", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\dots": r"\ldots",
    r"\cdots": r"\ldots", r"\vert": "|", r"\lvert": "|", r"\rvert": "|", r"\div": "/", r"\percent": r"\%",
}  # fmt: skip
_OPERATORS = (("**", "^"), ("<=", r"\leq "), (">=", r"\geq "), ("!=", r"\neq "), ("=<", r"\leq "), ("==", "="))
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))")
_CASES = re.compile(r"\\mathbb\s*([A-Z])")


_WHOLE = {"Ø": r"\emptyset", r"\{ \}": r"\{\}"}


def respell(text: str) -> str:
    """`text` in one spelling; see the module. A text longer than `LONGEST` comes back unchanged."""
    if len(text) > LONGEST:
        return text
    if text[:1] in ("*", "`") or text[-1:] in ("*", "`"):
        text = text.strip("*` ")
    if text[-1:] in "✓✔■□∎" or (text[-1:].isalpha() and "\\" in text[-14:]):
        text = _END_MARK.sub("", text)
    if not text.isascii():
        text = _ascii(text)
    if "\\" in text or "{" in text or "~" in text:
        text = _one_latex(text)
    text = _DELIMITERS.sub(" ", text) if "$" in text or "\\" in text else text
    for operator, sign in _OPERATORS:
        if operator in text:
            text = text.replace(operator, sign)
    if "..." in text:
        text = text.replace("...", r"\ldots ")
    if "sqrt" in text:
        text = _FUNCTION_ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or ''}}}", text)
    if "pi" in text or "nf" in text:
        text = _WORD_SIGN.sub(_sign, text)
    if "^" in text:
        text = _BARE_POWER.sub(r"^{-\1}", text)
    if "\\text" not in text:
        text = _FUNCTION.sub(r"\\\1 ", text)
    text = " ".join(text.split())
    while text[:1] == "{" and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    if text in _WHOLE:
        text = _WHOLE[text]
    while text.endswith((".", ",", ";", ":")) and not text.endswith((r"\right.", "\\,", "\\;", "\\:", "m.")):
        text = text[:-1].rstrip()
    return text


def _sign(match: re.Match[str]) -> str:
    if match[1] == "pi":
        return r"\pi "
    return r"-\infty " if match[1][0] in "nm" else r"\infty "


def unwrapped(text: str, command: re.Pattern[str]) -> str:
    """`text` without each command that `command` matches, the braces of its argument included.

    Only the braces that stand directly after it go; an argument without braces stays as it is.
    """
    match = command.search(text)
    while match:
        start, opening = match.start(), match.end()
        if text[opening : opening + 1] == "{" and (closing := _closing(text, opening)) > 0:
            text = text[:start] + text[opening + 1 : closing] + text[closing + 1 :]
        else:
            text = text[:start] + " " + text[opening:]
        match = command.search(text, start)
    return text


def _ascii(text: str) -> str:
    text = _LEADING_DASH.sub(r"\1-", text)
    text = _SMALL_FRACTION.sub(
        lambda match: (
            rf"\frac{{{unicodedata.normalize('NFKC', match[1])}}}{{{unicodedata.normalize('NFKC', match[2])}}}"
        ),
        text,
    )
    text = re.sub(r"(?<=\d)\s*([½⅓⅔¼¾⅕-⅞])", r" \1", text)
    text = _ROOT.sub(
        lambda match: (
            rf"\sqrt{_ROOT_INDEX[match[1]]}{{{next(part for part in match.groups()[1:] if part is not None)}}}"
        ),
        text,
    )
    text = _RAISED.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match[0]).replace('−', '-')}}}", text)
    text = _LOWERED.sub(lambda match: f"_{{{unicodedata.normalize('NFKC', match[0]).replace('−', '-')}}}", text)
    text = text.translate(_TRANSLATION)
    return text if text.isascii() else "".join(map(_ascii_character, text))


def _ascii_character(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.digit(character))
    plain = unicodedata.normalize("NFKC", character)
    if "⁄" in plain:  # a fraction that is one character
        above, below = plain.split("⁄")
        return rf"\frac{{{above}}}{{{below}}}" if below else character
    if character.isspace():
        return " "
    plain = plain.translate(_TRANSLATION)
    # Full-width and styled letters are letters; everything else, such as umlauts, stays.
    return (
        plain
        if (plain.isascii() and (plain.isalnum() or plain[:1] == "\\")) or 0xFF01 <= ord(character) <= 0xFF5E
        else character
    )


def _one_latex(text: str) -> str:
    text = _PUNCTUATED.sub(",", text)
    text = text.replace("\\!", "")
    if "\\" in text:
        text = _INVISIBLE.sub(" ", text)
        text = _MONEY_SIGN.sub(lambda match: match[1] or _MONEY_SIGNS[match[2]], text)
        text = _ROW_SPACE.sub(r"\1", text)
        text = re.sub(r"(?:\s*\\\\)+\s*$", "", text)
    text = _SPACING.sub(" ", text)
    if "\\" in text:
        text = _SIZES.sub("", text)
        text = unwrapped(text, _STYLED)
        text = _TEXT_FONT.sub(r"\\text", text)
        text = _TEXT_NUMBER.sub(r"\1", text)
        text = _ONE_LETTER_FONT.sub(r" \1", text)
        text = _NEGATED.sub(lambda match: r"\neq " if match[1] else rf"\not\{match[2]} ", text)
        text = _NATURAL.sub(r"\\ln ", text)
        text = _PRIME.sub(lambda match: "'" * match[0].count("prime"), text)
        text = _SYNONYM.sub(lambda match: _SYNONYMS.get(match[0], match[0]) + " ", text)
        text = _CASES.sub(r"\\mathbb{\1}", text)
        text = _DEGREES.sub(r"^\\circ ", text)
        text = _FRACTION.sub(r"\\frac", text)
        text = _BARE_ARGUMENT.sub(r"\1{\2}", text)
        text = _SECOND_ARGUMENT.sub(r"\1{\2}", text)
    return text


def _closing(text: str, opening: int) -> int:
    """Where the brace that opens at `opening` closes, -1 where it does not."""
    depth = 0
    for place in range(opening, len(text)):
        if text[place] in "{}" and (place == 0 or text[place - 1] != "\\"):
            depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return place
    return -1
