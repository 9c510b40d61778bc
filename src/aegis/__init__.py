"""AEGIS: a model that thinks in private, knows when not to answer, and stays an ordinary file."""

__version__ = "0.1.0"
