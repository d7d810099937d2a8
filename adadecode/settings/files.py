"""A file of settings as it was written: its values are text until a setting says what they mean, and each knows its line.

YAML alone would take `no` for a boolean, 1:30 for ninety, and of a key that stands twice the last.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adadecode.errors import UsageError
from adadecode.printable import on_one_line, printable

CORE = "tag:yaml.org,2002:"
TAGS = (
    "map",
    "seq",
    "str",
    "null",
    "bool",
    "int",
    "float",
    "timestamp",
    "merge",
    "value",
)  # what plain YAML is taken for
MERGE = CORE + "merge"  # the key `<<`, which lays another mapping under this one
NULLS = ("", "~", "null", "Null", "NULL")


class FileSettings(dict[str, Any]):
    """A mapping of a file of settings; `places` says of each of its keys in which file and line it stands.

    `of_run`: it is the configuration in a run.json, in which every setting has its value, whoever gave it.
    """

    def __init__(self, values: Mapping[str, Any], places: Mapping[str, str], *, of_run: bool = False) -> None:
        super().__init__(values)
        self.places = dict(places)
        self.of_run = of_run

    def without(self, names: Collection[str]) -> "FileSettings":
        """These settings less those of `names`."""
        kept = {name: value for name, value in self.items() if name not in names}
        return FileSettings(kept, self.places, of_run=self.of_run)

    def flattened(self, name: str) -> "FileSettings":
        """These settings with those of the mapping `name`, if there is one, beside the others."""
        inner = self.get(name)
        if not isinstance(inner, FileSettings):
            return self
        values = {**self.without({name}), **inner}
        return FileSettings(values, self.places | inner.places, of_run=self.of_run)


def read_mapping(file: Path) -> FileSettings:
    """The mapping in a YAML or JSON file, with text, null, lists and mappings in it (of JSON also numbers and booleans).

    Of a run.json it is the configuration that the run was started with. Raises UsageError with file and line.
    """
    form, name = "JSON" if file.suffix == ".json" else "YAML", printable(str(file))
    try:
        text = file.read_bytes().decode("utf-8-sig")
        loaded = _from_json(file, text) if form == "JSON" else _from_yaml(file, text)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" line {error.problem_mark.line + 1}"
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise UsageError(f"{name}{line}: cannot be read as YAML: {on_one_line(said)}") from error
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: cannot be read as {form}: it is not UTF-8 text") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{name}: cannot be read as {form}: {on_one_line(error)}") from error
    except RecursionError as error:
        raise UsageError(f"{name}: cannot be read as {form}: it is nested too deep") from error
    if not isinstance(loaded, FileSettings):
        raise UsageError(f"{name}: expected a mapping of settings, such as `task: gsm8k`")
    config = loaded.get("config")
    if "fingerprint" in loaded and isinstance(config, FileSettings):
        return FileSettings(config, config.places, of_run=True)
    return loaded


@dataclass
class _Yaml:
    """What the nodes of one YAML file stand for; a node that is referred to again is the same value."""

    file: Path
    _values: dict[int, Any] = field(default_factory=dict[int, Any])

    def value(self, node: yaml.Node) -> Any:
        """A mapping, a list, text or None; raises ConstructorError for anything else, which YAML writes with a tag."""
        if id(node) not in self._values:
            if node.tag.removeprefix(CORE) not in TAGS:
                raise _refused(f"{node.tag} is not among the kinds of a setting's values", node)
            self._values[id(node)] = self._made(node)
        return self._values[id(node)]

    def _made(self, node: yaml.Node) -> Any:
        match node:
            case yaml.MappingNode():
                return self._mapping(node)
            case yaml.SequenceNode():
                return [self.value(part) for part in node.value]
            case _:
                is_null = getattr(node, "style", None) is None and node.value in NULLS
                return None if is_null else node.value

    def _mapping(self, node: yaml.MappingNode) -> FileSettings:
        below, values, places = FileSettings({}, {}), FileSettings({}, {}), dict[str, int]()
        for key_node, value_node in node.value:
            key, value, line = self.value(key_node), self.value(value_node), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise _refused("the name of a setting must be text", key_node)
            if key in places:
                raise _refused(f"{quoted(key)} stands twice, in line {places[key]} too; keep one", key_node)
            places[key] = line
            if key_node.tag == MERGE:
                below = self._merged(value_node)
            else:
                values[key] = value
        own = {key: f"{printable(str(self.file))} line {places[key]}" for key in values}
        return FileSettings({**below, **values}, below.places | own)

    def _merged(self, node: yaml.Node) -> FileSettings:
        """The mapping that `<<` names, or the several it lists, the first of them on top."""
        merged = FileSettings({}, {})
        for part in reversed(node.value if isinstance(node, yaml.SequenceNode) else [node]):
            mapping = self.value(part)
            if not isinstance(mapping, FileSettings):
                raise _refused("`<<` takes a mapping, or a list of them", part)
            merged = FileSettings({**merged, **mapping}, merged.places | mapping.places)
        return merged


def _refused(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _from_yaml(file: Path, text: str) -> Any:
    compose: Callable[..., yaml.Node | None] = yaml.compose  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    node = compose(text, Loader=yaml.SafeLoader)
    return None if node is None else _Yaml(file).value(node)


def _from_json(file: Path, text: str) -> Any:
    def mapping(pairs: list[tuple[str, Any]]) -> FileSettings:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{quoted(twice)} stands twice; keep one")
        return FileSettings(values, dict.fromkeys(values, str(file)))

    return json.loads(text, object_pairs_hook=mapping)


def quoted(name: str) -> str:
    """`name` as a line may show it: what it is not sure to be is text of a few printed characters."""
    return f"`{name}`" if name.isprintable() and len(name) <= 80 else repr(name[:80])
