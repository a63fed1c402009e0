"""Which of the large tables' cases a plain test run takes."""

import hashlib
import subprocess
from pathlib import Path


def commit_hash(repository: Path) -> str:
    """The hash of the commit that is checked out, or `no-commit`."""
    command = ["git", "-C", str(repository), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # A source archive on a machine without git.
        return "no-commit"
    return result.stdout.strip() or "no-commit"


def is_sampled(test: str, seed: str, fraction: float) -> bool:
    """Whether a test belongs to the sample; each decides alone, so that adding tests moves no other one."""
    digest = hashlib.sha256(f"{seed}:{test}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
