"""`python -m bench`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

if __name__ == "__main__":
    if find_spec("msgspec") is None:  # the first package that every command needs: this is not .venv's Python
        print(
            f"error: {sys.executable} lacks the packages of requirements.lock\n"
            "hint: .venv/bin/python -m bench ...; `make setup` builds .venv",
            file=sys.stderr,
        )
        sys.exit(2)
    from bench.cli import main

    sys.exit(main())
