"""Lists that ``udas-fast recipes`` and ``udas-fast kinds`` print, kept in files, as making them imports torch.

``python -m udas_fast.cli.lists`` writes them anew after a change of a recipe or a kind.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def stored_list(name: str) -> str:
    """Return the list of the package's own "recipes" or "kinds"."""
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def own_lists() -> dict[str, str]:
    """Return the lists of the package's own recipes and kinds by their names."""
    from udas_fast.data import describe_kinds
    from udas_fast.recipes import all_recipes
    from udas_fast.recipes.listing import listing

    kinds = "".join(f"{name:<20}{text}\n" for name, text in describe_kinds())
    return {"recipes": listing(all_recipes().values()) + "\n", "kinds": kinds}


if __name__ == "__main__":
    for _name, _text in own_lists().items():
        (FOLDER / f"{_name}.txt").write_text(_text, encoding="utf-8")
