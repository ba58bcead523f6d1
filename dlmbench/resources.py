"""Where the files are that come with dlmbench but are no part of its code: recipes and published figures."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def recipe_folders() -> list[Path]:
    """Folders with recipes, the user's own first: ./recipes, then those of the clone or of the installed package."""
    places = (Path("recipes").resolve(), _PACKAGE.parent / "recipes", _PACKAGE / "recipes")
    return [place for place in dict.fromkeys(places) if place.is_dir()]
