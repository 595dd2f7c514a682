"""How a method is spelled: `name:parameter=value,parameter=value`.

Values with commas stand in quotes; inside double quotes, escapes are those of JSON:
`budget-forcing:max_thinking=512,cue="Final Answer:\\n"`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from satisfice.parameters import may_be_none, no_parameter

_PARAMETER = re.compile(r"""\s*([\w-]+)\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^,]*)\s*(?:,|$)""")


def read_parameters(name: str, text: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that `text` gives to what is called `name`, not yet read.

    Values are texts, or None where "none" is spelled and may be; whoever takes them reads them.

    Args:
        name: for messages.
        text: what stands after the colon, "" for none.
        types: the annotation of each parameter there is.

    Raises:
        ValueError: it cannot be read, or there is no such parameter; the message names the nearest that exists.
    """
    given: dict[str, Any] = {}
    position = 0
    while position < len(text):
        match = _PARAMETER.match(text, position)
        if match is None:
            raise ValueError(f"{name}: cannot read {text[position:]!r}; write parameters as name=value,name=value")
        position = match.end()
        key, raw = match[1].replace("-", "_"), match[2].strip()
        if key not in types:
            raise ValueError(no_parameter(name, key, types))
        given[key] = _value(name, key, raw, types[key])
    return given


def _value(name: str, key: str, raw: str, hint: Any) -> str | None:
    if raw[:1] == '"':
        try:
            return str(json.loads(raw))
        except ValueError as error:
            reason = f"in double quotes it must be a JSON text ({error})"
            raise ValueError(f"{name}: {key} cannot be {raw}: {reason}") from None
    if raw[:1] == "'":
        return raw[1:-1]
    return None if raw.lower() == "none" and may_be_none(hint) else raw
