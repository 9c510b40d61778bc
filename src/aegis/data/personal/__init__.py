"""Personal data and secrets: where they are in a text, and the text without them."""

from aegis.data.personal.detect import find_personal
from aegis.data.personal.masking import mask_everywhere, mask_personal_data
from aegis.data.personal.span import Span

__all__ = ["Span", "find_personal", "mask_everywhere", "mask_personal_data"]
