"""What no message may show: the key of a server, and where it may come from."""

import html
import json
import os
import re
from collections.abc import Callable
from urllib.parse import quote, unquote, urlsplit

from satisfice.engines.base import EngineError

DEFAULT_KEY = "OPENAI_API_KEY"
"""The environment variable that the official client reads."""


def read_key(variable: str) -> str:
    """The server's key; "" where none is set. No message shows it, nor what may be one in place of a variable's name.

    Raises:
        EngineError: the variable was asked for and holds no key, or holds what no header can carry.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise EngineError("--api-key-env takes the name of an environment variable, and not the key itself")
    name = variable if re.fullmatch(r"[A-Z][A-Z0-9_]*", variable) else "that --api-key-env names"
    key = os.environ.get(variable, "").strip()
    if not key and variable != DEFAULT_KEY:
        raise EngineError(f"the environment variable {name}, which is to hold the server's key, is not set")
    if not re.fullmatch(r"[!-~]*", key):
        raise EngineError(
            f"the key in the environment variable {name} has a blank, a line break or another character that no "
            "header can carry: set it again"
        )
    return key


def hiding(key: str) -> Callable[[str], str]:
    """A function that puts *** in the place of a key in any text, also where it is escaped or cut off.

    A key of fewer than eight characters is hidden where it stands as a word of its own: most are stand-ins such as "x".
    """
    if not key:
        return lambda text: text
    forms = {key, quote(key, safe=""), html.escape(key), json.dumps(key)[1:-1], key.replace("/", "\\/")}
    if len(key) < 8:
        told = "|".join(map(re.escape, forms))
        pattern = re.compile(rf"(?<![\w-])(?:{told})(?![\w-])")
    else:
        heads = sorted({form[:12] for form in forms}, key=len, reverse=True)
        pattern = re.compile(rf"(?:{'|'.join(map(re.escape, heads))})[^\s\"'<>,;(){{}}]*", re.IGNORECASE)
    return lambda text: pattern.sub("***", text)


def checked_url(base_url: str, api_key: str) -> str:
    """A base URL that holds nothing secret, without a slash at its end.

    Raises:
        EngineError: it is none, or holds what belongs into the environment; the message does not show that.
    """
    shown = re.split(r"[?#]", base_url)[0]
    try:
        parts = urlsplit(base_url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if "@" in base_url and (not good or "@" in parts.netloc):
        raise EngineError("the base URL holds a user name or password: put the key into an environment variable")
    if not good:
        raise EngineError(f"the base URL {hiding(api_key)(shown)!r} must look like http://127.0.0.1:8000/v1")
    if parts.query or parts.fragment or "?" in base_url:
        raise EngineError(
            f"the base URL {hiding(api_key)(shown)!r} goes on with a question mark or a hash: leave that out, and put "
            "a key into an environment variable"
        )
    if api_key and len(api_key) >= 8 and api_key in unquote(base_url):
        raise EngineError("the base URL holds the key: leave it out, it is sent in a header")
    for path in ("/completions", "/chat", "/models"):
        if shown.rstrip("/").endswith(path):
            raise EngineError(
                f"the base URL {hiding(api_key)(shown)!r} ends with the path of a request: leave out "
                f"{'/chat/completions' if '/chat/' in shown else path}"
            )
    return base_url.rstrip("/")
