"""The one exception that stands for data or settings that are not as they must be."""
from __future__ import annotations


class DataError(ValueError):
    """Its message is one line that says what is wrong, where, and what to do."""
