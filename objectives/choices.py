"""Checks that a config's author gets for free."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

from shards import InputError


def check_choices(config: Any) -> None:
    """Raise InputError, naming the flag, where a field that is a Literal holds none of its values."""
    for field, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal and getattr(config, field) not in get_args(kind):
            flag = f"--{field.replace('_', '-')} {getattr(config, field)}"
            raise InputError(f"{flag}: choose one of {', '.join(map(str, get_args(kind)))}")
