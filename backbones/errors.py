"""The one exception that stands for a mistake of the user's, not of ours."""
from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Its message is one line that says what is wrong, where, and what to do."""


def closest(word: str, known: Iterable[str]) -> str:
    """End of an error line: the closest names, then all that exist."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(word), known, n=3, cutoff=0.5)
    hint = f'; did you mean {" or ".join(near)}?' if near else '.'
    return f'{hint} Known: {", ".join(known)}'
