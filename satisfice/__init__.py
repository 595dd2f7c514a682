"""satisfice: make small reasoning models stop thinking at the right point."""

__version__ = "0.1.0"
