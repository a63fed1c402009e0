"""Lets another virtual environment see what is installed in this one, without copying it."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path


def link(environment: Path) -> Path:
    """Write a ``.pth`` file into ``environment`` that adds this interpreter's packages; its path.

    ``addsitedir`` and not the bare folder: editable packages are ``.pth`` files there.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (packages,) = [
        p for p in environment.glob("[Ll]ib/**/site-packages") if version in str(p) or p.parent.name == "Lib"
    ]
    file = packages / "_linked.pth"
    file.write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n", encoding="utf-8")
    return file


if __name__ == "__main__":
    print(link(Path(sys.argv[1])))
