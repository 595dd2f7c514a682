"""Curations, one file each; how they are spelled: `satisfice.supervision`."""
