"""Checks that a config's author gets for free."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

from models import backbones
from shards import InputError


def check_choices(config: Any) -> None:
    """Raise InputError, naming the flag, where a field that is a Literal holds none of its values."""
    for field, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal and getattr(config, field) not in get_args(kind):
            flag = f"--{field.replace('_', '-')} {getattr(config, field)}"
            raise InputError(f"{flag}: choose one of {', '.join(map(str, get_args(kind)))}")


def check_backbone(
    flag: str, name: str, frames: int, size: int, width: float, channels: int = 3, own: tuple[str, ...] = ()
) -> None:
    """Raise InputError, naming the flag, where clips (channels, frames, size, size) do not fit the named backbone.

    own: names of encoders that the objective has besides, and has checked itself.
    """
    if name in own:
        return
    try:
        backbones.check(name, frames, size, width, channels)
    except ValueError as error:
        also = f"; or {', '.join(own)}" if own and name not in backbones.BACKBONES else ""
        raise InputError(f"{flag} {name}: {error}{also}") from None
