"""Objectives that put a price on length, one file an objective; their contract: `satisfice.reinforcement.objective`."""
