"""How a command line is read. Imports nothing heavy, so that help is quick."""

from __future__ import annotations

import argparse


class Parser(argparse.ArgumentParser):
    """Keeps the line breaks of descriptions and examples, and never guesses an abbreviated option."""

    def __init__(self, **settings: object) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,  # type: ignore[arg-type]
        )


Commands = argparse._SubParsersAction  # the type that argparse gives, and gives no name to
