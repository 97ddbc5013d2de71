"""The bundle that comes with the package."""

from pathlib import Path

SHIPPED_BUNDLE = Path(__file__).parent / "bundles" / "tabletop"
