"""What all commands print with: two consoles, one way to complain, and the exit statuses."""

from rich.console import Console
from rich.text import Text

console = Console()
"""For results: standard output."""
errors = Console(stderr=True)
"""For progress, warnings and errors: standard error."""

FAILED = 1
"""Exit status of a run in which responses could not be had; bad input exits with 2."""

NARROWEST = 16
"""Characters that a method's name has at least, in a table or before a bar."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells expect it."""


def complain(text: str, style: str = "yellow") -> None:
    """Print a warning (yellow) or an error (red) as it is, on standard error.

    Neither markup nor line breaks are put in, so that a path or a command in it can be copied whatever the width.
    """
    errors.print(Text(text, style=style), highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Text without control characters that could move the cursor or recolour the terminal."""
    return "".join(
        character if character.isprintable() or character in "\n\t\N{NO-BREAK SPACE}" else "\ufffd"
        for character in text
    )
