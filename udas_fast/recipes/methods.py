"""Methods of the user's own: files and installed packages that define objectives and recipes."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from udas_fast._build import ENTRY_POINTS
from udas_fast.errors import InputError, bad, first_line
from udas_fast.objectives import ObjectiveConfig, objective_kinds
from udas_fast.objectives.base import KINDS
from udas_fast.recipes.recipe import Recipe

_LOADED: dict[str, ModuleType] = {}  # by origin: the path of a file, or the name of a module


def load_method_file(path: Path | str) -> list[Recipe]:
    """Import a Python file that defines methods; return its recipes, which :func:`get_recipe` finds from now on.

    Raises:
        InputError: no such file, or its code fails; names the line.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise bad(f"method file {path}", "no such file", "a Python file with recipes")
    return _recipes_of(_import(str(file)))


def user_recipes() -> tuple[dict[str, Recipe], dict[str, str]]:
    """Return the recipes of loaded files and entry points by name, and the failures of entry points by name.

    One that fails leaves the others alone.
    """
    failures = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        try:
            _import(point.module)
        except InputError as error:
            failures[point.name] = str(error)
    found: dict[str, Recipe] = {}
    for origin, module in _LOADED.items():
        for recipe in _recipes_of(module):
            if found.setdefault(recipe.name, recipe) is not recipe:
                raise bad(
                    f"recipes of {origin}", f"the name {recipe.name!r} of another recipe", "a name of its own"
                )
    return found, failures


def origins(recipe: Recipe) -> list[str]:
    """Return what has to be imported before ``recipe`` can be read again: files and modules of its own methods."""
    found = []
    for stage in recipe.stages:
        module = type(stage.objective).__module__
        if not module.startswith("udas_fast.objectives."):
            found.append(_origin(module))
    return list(dict.fromkeys(found))


def method_files(recipe: Recipe) -> list[str]:
    """Return the files that define the methods of ``recipe``, for `--method-file`."""
    return [origin for origin in origins(recipe) if origin.endswith(".py") and not origin.startswith(_SCRIPT)]


def import_origins(found: Sequence[str], place: str, kinds: Iterable[str]) -> None:
    """Import what :func:`origins` returned, unless all ``kinds`` of methods are registered already.

    Raises:
        InputError: something that cannot be imported any more; ``place`` names the file that asks for it.
    """
    if isinstance(found, str) or not all(isinstance(origin, str) for origin in found):
        raise bad(f"{place}: methods", repr(found), "a list of files and modules")
    if set(kinds) <= objective_kinds().keys():
        return  # --method-file or the user's program has imported them, from wherever they are now
    for origin in found:
        if origin.startswith(_SCRIPT):
            raise bad(
                f"{place}: methods",
                f"a method defined in the script {origin.removeprefix(_SCRIPT)}",
                "to go on in that script by Trainer.resume, or the method in a file of its own and --method-file FILE",
            )
        try:
            _import(origin)
        except InputError as error:
            raise InputError(f"{place}: its method cannot be imported: {error}") from error


_SCRIPT = "script:"


def _origin(module: str) -> str:
    """Return the file or the name by which ``module`` can be imported in another process."""
    path: str | None = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__":
        return f"{_SCRIPT}{Path(path).resolve() if path else 'of an interactive session'}"
    by_name = "." in module or module in _LOADED  # relative imports need the package's name
    if path is None or by_name or {"site-packages", "dist-packages"} & set(Path(path).parts):
        return module
    return str(Path(path).resolve())


def _import(origin: str) -> ModuleType:
    """Import a file or a module once."""
    if origin in _LOADED:
        return _LOADED[origin]
    before = dict(KINDS)
    try:
        module = _import_file(Path(origin)) if origin.endswith(".py") else importlib.import_module(origin)
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        _forget_kinds(before)
        reason = "sys.exit" if isinstance(error, SystemExit) else first_line(error)
        raise InputError(f"method {origin}: {_where(error, origin)}{reason}") from error
    _LOADED[origin] = module
    return module


def _forget_kinds(before: Mapping[str, type[ObjectiveConfig]]) -> None:
    """Take back the kinds of a module whose import failed; those of modules that it has imported are kept."""
    for kind, cls in list(KINDS.items()):
        if cls.__module__ not in sys.modules:
            del KINDS[kind]
            if kind in before:
                KINDS[kind] = before[kind]


def _import_file(file: Path) -> ModuleType:
    for loaded in list(sys.modules.values()):
        if getattr(loaded, "__file__", None) == str(file) and loaded.__name__ != "__main__":
            return loaded  # the user's program has imported it already
    if not file.is_file():
        raise InputError("no such file; give the file's new place by --method-file")
    # Two files of one name are two modules.
    name = f"udas_fast_method_{file.stem}_{hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()}"
    loader = SourceFileLoader(name, str(file))
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _where(error: BaseException, origin: str) -> str:
    """Return ``line N: `` of the user's file where an error arose in it."""
    if isinstance(error, SyntaxError) and error.filename == origin and error.lineno is not None:
        return f"line {error.lineno}: "
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == origin:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f"line {line}: "


def _recipes_of(module: ModuleType) -> list[Recipe]:
    values: Mapping[str, object] = vars(module)
    return [value for value in values.values() if isinstance(value, Recipe)]
