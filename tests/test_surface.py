"""What an app sees of the package: names at the top, and types that can be read at run time."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec

import dspark_mlx


def functions_of(owner: type) -> Iterator[Callable[..., object]]:
    """The methods and properties that a class defines, without those that dataclass writes."""
    for value in vars(owner).values():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        # A generated __init__ looks up the types of inherited fields in the subclass's module.
        if inspect.isfunction(function) and function.__code__.co_filename != "<string>":
            yield function


def test_types_can_be_read_at_run_time():
    """NameError from typing.get_type_hints: a name that only type checkers import."""
    http = find_spec("starlette") and find_spec("prometheus_client")
    for found in pkgutil.walk_packages(dspark_mlx.__path__, "dspark_mlx."):
        if found.name.startswith("dspark_mlx.server.") and not http:
            continue  # the extra server is not installed
        module = import_module(found.name)
        for value in vars(module).values():
            if getattr(value, "__module__", None) != found.name:
                continue
            if inspect.isfunction(value):
                typing.get_type_hints(value)
            elif inspect.isclass(value):
                typing.get_type_hints(value)
                for function in functions_of(value):
                    typing.get_type_hints(function)


def test_the_top_has_what_an_app_needs_and_nothing_else():
    """A helper's name that an app comes to depend on."""
    assert set(dspark_mlx.__all__) == {
        *("load", "add_drafter", "Decoder", "Chunk", "Round", "Statistics", "InputError"),
        *("RequestHandle", "Answer", "ToolCall", "Limits", "BusyError", "ClosedError"),
        "MemoryLimitError",
        "__version__",
    }
    public = {
        name
        for name, value in vars(dspark_mlx).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(dspark_mlx.__all__) - {"__version__"}


def test_the_packages_docstring_names_them():
    """help(dspark_mlx) that leaves a name out, or shows code that is none."""
    said = dspark_mlx.__doc__ or ""
    for name in set(dspark_mlx.__all__) - {"__version__"}:
        assert name in said
    example = [line[4:] for line in said.splitlines() if line.startswith("    ")]
    ast.parse("\n".join(example))
    assert len(example) == 4


def test_every_public_name_is_documented():
    """help() with nothing to say."""
    for name in set(dspark_mlx.__all__) - {"__version__"}:
        value = getattr(dspark_mlx, name)
        assert inspect.getdoc(value)
        for function in functions_of(value) if inspect.isclass(value) else ():
            assert function.__name__.startswith("_") or inspect.getdoc(function), function
