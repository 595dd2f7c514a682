"""Doors to programs that people already run models with, one file each; nothing is imported before it is asked for."""
