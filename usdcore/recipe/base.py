"""The base of the recipe's own sections."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class Section(BaseModel):
    """Frozen; unknown keys, infinities and NaN are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",  # else an infinity in model.kwargs would be dumped as null
    )


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=100)]
"""Names folders and files: letters, digits, '.', '_', '-'."""

Fraction = Annotated[float, Field(gt=0, le=1)]
"""Of the dense model."""

MOST = 2**24
"""Of anything that is counted: whatever is larger was not meant, and would only fail later, or never end."""

Count = Annotated[int, Field(ge=1, le=MOST)]
