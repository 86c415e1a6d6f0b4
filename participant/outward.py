"""What is said of a failure to those outside: without the folders of this machine. Pure."""

from __future__ import annotations

import re
from typing import Final

# From the root on, and not the path of a URL. The last name stays, so that a person at the site knows the file.
_FOLDERS: Final = re.compile(r"(?<![\w/:.~-])(?:/[\w.@+~-]+)+/(?=[\w.@+~-])")


def without_folders(message: str) -> str:
    """The message with every absolute path cut down to its last name: its folders may name a customer, or a person."""
    return _FOLDERS.sub("", message)
