"""From what was collected to what is worth training on; all that goes has a reason."""

from aegis.data.clean.memory import Cleaned, clean
from aegis.data.clean.near import SimilarTexts
from aegis.data.clean.quality import problem_of
from aegis.data.clean.texts import normalise, repetition

__all__ = ["Cleaned", "SimilarTexts", "clean", "normalise", "problem_of", "repetition"]
