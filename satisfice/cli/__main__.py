"""`python -m satisfice.cli` is the command `satisfice`."""

from satisfice.cli import main

main()
