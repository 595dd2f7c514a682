"""`python -m satisfice` is the command `satisfice`."""

from satisfice.cli import main

main()
