"""The base class of all config sections."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    """A frozen config section that rejects unknown keys and values of the wrong type."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_own_type(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic would accept true for 1, "3" for 3 and 1 for true. YAML reads 1e-3 as a string, which stays accepted.
        expected = cls.model_fields[str(info.field_name)].annotation
        if expected in (int, int | None) and isinstance(value, bool | str):
            raise ValueError("must be a valid integer")
        if expected in (float, float | None) and isinstance(value, bool):
            raise ValueError("must be a valid number")
        if expected is bool and not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value
