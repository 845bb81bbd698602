"""How a configured path becomes a Path and back."""

from pathlib import Path

CONF = Path(__file__).resolve().parent
ROOT = CONF.parent  # of the repository


def from_root(path: str | Path) -> Path:
    """Resolve a configured path; relative ones start at the repository."""
    return ROOT / path


def shorten(path: Path) -> str:
    """Show a path relative to the repository when it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
