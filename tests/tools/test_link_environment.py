"""The file that lets one environment see another's packages."""

import sys
from pathlib import Path

from tools.link_environment import link


def test_the_packages_of_this_interpreter_are_added(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    file = link(tmp_path)
    assert file.parent == packages
    assert "site.addsitedir(" in file.read_text()
