"""``python -m regraft``."""

from __future__ import annotations

from regraft.cli import main

main()
