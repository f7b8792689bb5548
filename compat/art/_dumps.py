"""The methods of Pydantic models that scripts call, for attrs classes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import Any, Self

import attrs
import pydantic
from pydantic_core import core_schema


def plain(value: Any) -> Any:
    """Return a value as dicts and lists."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return plain(attrs.asdict(value, recurse=False)) if attrs.has(type(value)) else value


class PydanticMethods:
    """`model_dump` and its like, of the attributes that `_dumped_names` returns."""

    __slots__ = ()

    def _dumped_names(self) -> list[str]:
        fields: Any = type(self)
        return [field.name for field in attrs.fields(fields) if field.init]

    def model_dump(
        self,
        *,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        **_: Any,
    ) -> dict[str, Any]:
        """Return the attributes as plain values."""
        names = [n for n in self._dumped_names() if include is None or n in include]
        return {name: plain(getattr(self, name)) for name in names if name not in exclude}

    def model_dump_json(self, *, indent: int | None = None, **options: Any) -> str:
        """Return the attributes as JSON."""
        return json.dumps(self.model_dump(**options), indent=indent, default=str)

    def model_copy(self, *, update: dict[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values of some attributes."""
        values = {name: getattr(self, name) for name in self._dumped_names()}
        if deep:
            values = copy.deepcopy(values)
        return type(self)(**{**values, **(update or {})})

    @classmethod
    def model_validate(cls, values: Any) -> Self:
        """Return an object of these values, or the object itself."""
        return values if isinstance(values, cls) else cls(**values)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Let a Pydantic model have fields of this class."""
        return core_schema.no_info_plain_validator_function(
            cls.model_validate,
            serialization=core_schema.plain_serializer_function_ser_schema(plain),
        )


def take_fields(cls: type) -> None:
    """Make the annotated attributes of a class fields of it, as those of a Pydantic model are."""
    for name in vars(cls).get("__annotations__", {}):
        if name in vars(cls):
            setattr(cls, name, _field(vars(cls)[name]))
    attrs.define(cls, slots=False, kw_only=True, eq=False)


def _field(default: Any) -> Any:
    if isinstance(default, pydantic.fields.FieldInfo):
        made: Any = default.default_factory
        if made is not None:
            return attrs.field(factory=made)
        return attrs.field() if default.is_required() else _field(default.default)
    if isinstance(default, list | dict | set):
        return attrs.field(factory=lambda: copy.copy(default))
    return default
