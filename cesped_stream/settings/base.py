"""What all groups of settings have in common."""

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

from cesped_stream.errors import InvalidSettingsError
from cesped_stream.point_group import point_group_name

Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["float32", "bfloat16"]
CtfCorrection = Literal["none", "phase_flip", "multiply", "wiener"]


def _point_group(said: str) -> str:
    try:
        return point_group_name(said)
    except InvalidSettingsError as error:
        raise ValueError(str(error)) from None


Symmetry = Annotated[str, AfterValidator(_point_group)]
"""A point group by RELION's name, kept in capitals."""


class Settings(BaseModel):
    """Base of every settings group: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def ordered(settings: S, *pairs: tuple[str, str]) -> S:
    """Return the settings; ValueError where the first field of a pair is above its second."""
    for least, largest in pairs:
        low, high = getattr(settings, least), getattr(settings, largest)
        if low > high:
            raise ValueError(f"{least} {low:g} is above {largest} {high:g}")
    return settings
