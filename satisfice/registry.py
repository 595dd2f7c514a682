"""What goes by a name: found in a folder of this package, in packages that are installed beside it, and in files.

A registry reads each of these places itself, so whoever adds a method adds one file and no line anywhere else:

    its folder      every public class of the kind in the modules of `intervention/methods/`, for example
    packages        the entry points of a group, `satisfice.methods`, whose name is the method's
    plugin files    every public class of the kind in the files that this process was told to load

Looking up a name imports the package that provides it and no other one; names alone import nothing.
"""

import hashlib
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")

NAME = re.compile(r"[a-z][a-z0-9@-]*")
"""How a name is spelled: nothing that the command line gives a meaning of its own, such as a colon or a plus."""


class PluginError(ValueError):
    """A package or a file that offers something by a name cannot be used."""


@dataclass(frozen=True)
class PluginFile:
    """A Python file with methods, objectives, graders or problem sources, as text: it can travel to another process.

    Attributes:
        path: as it was given; it stands in messages and need not exist where the file is loaded.
        text: its content.
    """

    path: str
    text: bytes

    @classmethod
    def read(cls, path: str | Path) -> "PluginFile":
        """The file at `path`.

        Raises:
            PluginError: it cannot be read, or is no Python file by its name.
        """
        if Path(path).suffix != ".py":
            raise PluginError(f"plugin {path} is no Python file: its name must end with .py")
        try:
            return cls(str(path), Path(path).read_bytes())
        except OSError as error:
            raise PluginError(f"plugin {path} cannot be read: {error.strerror}") from None

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.path).name

    @property
    def module(self) -> str:
        """The name of its module. It depends on the file's name alone, so that pickled objects find it again."""
        return f"satisfice_plugin_{re.sub(r'[^A-Za-z0-9_]', '_', Path(self.path).stem)}"

    @property
    def digest(self) -> str:
        """SHA-256 of its content."""
        return hashlib.sha256(self.text).hexdigest()


_files: dict[str, PluginFile] = {}
"""The plugin files of this process by the names of their modules, in the order in which they were loaded."""
_used: dict[str, str] = {}
"""Versions of the packages from which something was loaded, by their names."""


def load_file(file: PluginFile) -> None:
    """Load a plugin file; all registries of this process know its classes from then on. Again, it does nothing.

    Raises:
        PluginError: it cannot be imported, or another one of the same name was loaded before.
    """
    before = _files.get(file.module)
    if before is not None:
        if before.digest == file.digest:
            return
        raise PluginError(f"plugins {before.path} and {file.path} have the same name: rename one of them")
    module = ModuleType(file.module)
    module.__file__ = file.path
    sys.modules[file.module] = module
    try:
        exec(compile(file.text, file.path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[file.module]
        lines = [frame.tb_lineno for frame in _frames(error) if frame.tb_frame.f_code.co_filename == file.path]
        where = f" (line {lines[-1]})" if lines else ""
        raise PluginError(f"plugin {file.path} cannot be loaded{where}: {_said(error)}") from error
    _files[file.module] = file


def forget_file(file: PluginFile) -> None:
    """Take a plugin file out of all registries again."""
    _files.pop(file.module, None)
    sys.modules.pop(file.module, None)


def loaded_files() -> tuple[PluginFile, ...]:
    """The plugin files of this process, for another process to load them, too."""
    return tuple(_files.values())


def plugins_in_use() -> dict[str, dict[str, str]]:
    """What this process has taken from outside: the version of each package, the digest of each file."""
    packages = {name: {"version": version} for name, version in sorted(_used.items())}
    return packages | {file.name: {"sha256": file.digest} for file in _files.values()}


class Registry(MutableMapping[str, type[Kind]]):
    """Classes of one kind by their names: those of this package, then those of other packages, then those of files.

    From Python a class can be put in, too: `METHODS["my-method"] = MyMethod`.

    Attributes:
        base: what they all subclass.
        what: the kind in words, for messages.
        group: of entry points.
        place: the package whose modules, or the module that, hold this package's own.
        first: names that stand before the others, which are in alphabetical order.
        parameters: whether their parameters are fields of a dataclass, each with a default.
    """

    def __init__(
        self,
        base: type[Any],
        what: str,
        group: str,
        place: str,
        *,
        first: tuple[str, ...] = (),
        parameters: bool = True,
    ) -> None:
        self.base, self.what, self.group, self.place = base, what, group, place
        self.first, self.parameters = first, parameters
        self._given: dict[str, type[Kind]] = {}

    @cached_property
    def _own(self) -> dict[str, type[Kind]]:
        module = importlib.import_module(self.place)
        inside = [each.name for each in pkgutil.iter_modules(getattr(module, "__path__", []))]
        names = [f"{self.place}.{name}" for name in inside] or [self.place]
        found: dict[str, type[Kind]] = {}
        for name in names:
            for kind in self._classes(sys.modules.get(name) or importlib.import_module(name), name):
                self._refuse_taken(kind.name, name, found)
                found[kind.name] = kind
        order = {name: place for place, name in enumerate(self.first)}
        return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            if point.name in found:
                raise PluginError(
                    f"{_package(found[point.name])} and {_package(point)} both offer a {self.what} {point.name!r}: "
                    "uninstall one of them"
                )
            self._refuse_taken(point.name, _package(point), self._own)
            found[point.name] = point
        return found

    @property
    def _in_files(self) -> dict[str, tuple[type[Kind], str]]:
        found: dict[str, tuple[type[Kind], str]] = {}
        for file in _files.values():
            for kind in self.classes_in(file):
                if kind.name in found:
                    raise PluginError(
                        f"plugin {file.path} names a {self.what} {kind.name!r}, which {found[kind.name][1]} has, too: "
                        "give it another name"
                    )
                found[kind.name] = kind, f"plugin {file.path}"
        return found

    def classes_in(self, file: PluginFile) -> list[Any]:
        """The classes of this kind in a plugin file that is loaded.

        Raises:
            PluginError: one of them is not complete, or has a name that is taken.
        """
        where = f"plugin {file.path}"
        kinds = self._classes(sys.modules[file.module], where)
        for kind in kinds:
            self._refuse_taken(kind.name, where, self._own)
            if kind.name in self._entry_points:
                taken = _package(self._entry_points[kind.name])
                raise PluginError(f"{where} names a {self.what} {kind.name!r}, which {taken} has: give it another name")
        return kinds

    def file_of(self, name: str) -> PluginFile | None:
        """The plugin file that a class comes from; None for all others."""
        for file in _files.values():
            if any(kind.name == name for kind in self.classes_in(file)):
                return file
        return None

    def only_here(self, name: str) -> bool:
        """Whether a class was put in from Python, so that no other process can find it."""
        return name in self._given

    def __getitem__(self, name: str) -> type[Kind]:
        point = self._entry_points.get(name)  # looked at first, so that a package with a name that is taken is told
        for there in (self._own, self._given):
            if name in there:
                return there[name]
        return self._in_files[name][0] if point is None else self._loaded(point)

    def __setitem__(self, name: str, kind: type[Kind]) -> None:
        self._check(kind, f"what was put in as {name!r}")
        self._given[name] = kind

    def __delitem__(self, name: str) -> None:
        del self._given[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._own, *self._entry_points, *self._in_files, *self._given]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return any(name in names for names in (self._own, self._entry_points, self._given)) or name in self._in_files

    def _loaded(self, point: EntryPoint) -> type[Kind]:
        where = _package(point)
        try:
            kind = point.load()
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{where} offers a {self.what} {point.name!r} that cannot be loaded: {_said(error)}; repair or "
                "uninstall it"
            ) from error
        self._check(kind, where)
        if kind.name != point.name:
            raise PluginError(
                f"{where}: its entry point is called {point.name!r} and the {self.what} {kind.name!r}: give both one "
                "name"
            )
        if point.dist is not None:
            _used[point.dist.name] = point.dist.version
        checked: type[Kind] = kind
        return checked

    def _classes(self, module: ModuleType, where: str) -> list[Any]:
        """The public classes of this kind that a module defines, in its order; each is checked."""
        kinds = [
            value
            for name, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, self.base)
            and value.__module__ == module.__name__
            and value is not self.base
            and not name.startswith("_")
        ]
        for kind in kinds:
            self._check(kind, where)
        return list(dict.fromkeys(kinds))

    def _check(self, kind: Any, where: str) -> None:
        base = f"{self.base.__module__}.{self.base.__name__}"
        if not (isinstance(kind, type) and issubclass(kind, self.base)):
            said = kind.__name__ if isinstance(kind, type) else repr(kind)
            raise PluginError(f"{where}: {said} is no {self.what}: it must subclass {base}")
        missing = [name for name in inspect.get_annotations(self.base) if not hasattr(kind, name)]
        missing += sorted(getattr(kind, "__abstractmethods__", ()))
        if missing:
            raise PluginError(f"{where}: the {self.what} {kind.__name__} lacks {', '.join(missing)}; see {base}")
        name = kind.name  # type: ignore[attr-defined]  # every base has one
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise PluginError(f"{where}: no {self.what} can be called {name!r}: use small letters, digits and hyphens")
        for attribute, type_ in _class_attributes(self.base).items():
            if not isinstance(getattr(kind, attribute), type_):
                raise PluginError(
                    f"{where}: {attribute} of {kind.__name__} is {getattr(kind, attribute)!r}; it must be of the type "
                    f"{type_.__name__}"
                )
        for method in getattr(self.base, "__abstractmethods__", ()):
            if inspect.iscoroutinefunction(getattr(self.base, method)) > inspect.iscoroutinefunction(
                getattr(kind, method)
            ):
                raise PluginError(f"{where}: {method} of {kind.__name__} must be written as async def {method}")
        if not self.parameters:
            return
        if not is_dataclass(kind) or "__dataclass_params__" not in vars(kind):
            raise PluginError(
                f"{where}: the {self.what} {kind.__name__} is no dataclass: write @dataclass(frozen=True)"
            )
        for field in fields(kind):
            if field.init and field.default is MISSING and field.default_factory is MISSING:
                raise PluginError(f"{where}: the parameter {field.name} of {kind.__name__} has no default: give it one")
            if field.name in _class_attributes(self.base):
                raise PluginError(
                    f"{where}: {field.name} of {kind.__name__} is declared as a parameter: annotate it with ClassVar"
                )
        for above in kind.__mro__[: kind.__mro__.index(self.base)]:
            own = vars(above).get("__post_init__")
            if hasattr(self.base, "__post_init__") and own and "__post_init__" not in own.__code__.co_names:
                raise PluginError(
                    f"{where}: __post_init__ of {above.__name__} must begin with super().__post_init__(), which reads "
                    "and checks the parameters"
                )
        if not kind.__module__.startswith(f"{self.place}."):
            from satisfice.parameters import describe_parameters  # pydantic is slow to import

            try:
                describe_parameters(kind)
            except Exception as error:  # whatever an annotation that someone else wrote raises when it is evaluated
                raise PluginError(
                    f"{where}: the parameters of {kind.__name__} cannot be read: {_said(error)}"
                ) from error

    def _refuse_taken(self, name: str, where: str, taken: Iterable[str]) -> None:
        if name in taken:
            raise PluginError(
                f"{where} offers a {self.what} {name!r}, and satisfice has one of that name: give it another name"
            )


def _class_attributes(base: type[Any]) -> dict[str, type]:
    """The attributes that a base declares with ClassVar, and the class that the value of each must be of."""
    declared = {name: get_args(hint) for name, hint in get_type_hints(base).items() if get_origin(hint) is ClassVar}
    classes = {name: get_origin(inside[0]) or inside[0] for name, inside in declared.items()}
    return {name: kind for name, kind in classes.items() if isinstance(kind, type)}


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name} {point.dist.version}" if point.dist is not None else f"entry point {point.value}"


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _frames(error: BaseException) -> Iterator[Any]:
    frame = error.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next
