"""What every part of a configuration has in common: no unknown keys, and the numbers that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from loraplan import sources
from loraplan.errors import did_you_mean
from loraplan.profiles import Positive
from loraplan.workload import MOST_RANK, MOST_RATE, MOST_TOKENS

Rank = Annotated[int, Field(gt=0, le=MOST_RANK)]
Count = Annotated[int, Field(gt=0, le=1_000_000)]
MeanTokens = Annotated[float, Field(ge=1, le=MOST_TOKENS, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0, le=sources.MOST_CV, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0)]
Scale = Annotated[Positive, Field(le=MOST_RATE)]


class Part(BaseModel):
    """A mapping of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _know_every_key(cls, data: Any) -> Any:
        for key in data if isinstance(data, Mapping) else ():
            if key not in cls.model_fields:
                hint = did_you_mean(str(key), cls.model_fields)
                raise PydanticCustomError("unknown_key", "unknown key{hint}", {"key": str(key), "hint": hint})
        return data
