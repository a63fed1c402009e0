"""``python -m regraft.cli``."""

from __future__ import annotations

from regraft.cli.app import main

main()
