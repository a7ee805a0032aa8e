"""Kinds of values that options have, and groups of options."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A group of options: typed, frozen, and closed to unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# by their names
CORPORA = ("shakespeare", "tinyshakespeare", "words", "dialogue", "two_gentlemen", "markov")
WATCHERS = ("page", "tensorboard", "wandb", "trackio", "mlflow")
TOKENIZERS = ("char", "bpe", "gpt2")
UnknownCharacters = Literal["refuse", "replace"]

Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(ge=0, le=1e38)]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # no file name and no TOML file may have a NUL
# ~ is the user's home, as in a shell
FileName = Annotated[Text, AfterValidator(os.path.expanduser)]


def parse_markov(corpus: str) -> tuple[int, int, float] | None:
    """Read order, alphabet and temperature from the name of a corpus; None if it is not markov.

    >>> parse_markov("markov"), parse_markov("markov-1-5-2")
    ((2, 27, 0.5), (1, 5, 2.0))
    """
    if corpus == "markov":
        return 2, 27, 0.5
    found = re.fullmatch(r"markov-(\d{1,9})-(\d{1,9})-(\d{1,9}\.?\d{0,9})", corpus)
    if found is None:
        return None
    return int(found[1]), int(found[2]), float(found[3])


def _check_markov(corpus: str) -> str:
    order, alphabet, temperature = parse_markov(corpus) or (2, 27, 0.5)
    if not 1 <= order <= 3 or not 2 <= alphabet <= 63 or not 0.01 <= temperature <= 100:
        raise PydanticCustomError(
            "markov",
            "a corpus markov-ORDER-ALPHABET-TEMPERATURE has an order of 1 to 3, an alphabet of 2 "
            "to 63 and a temperature of 0.01 to 100",
        )
    return corpus


def _check_page(name: str) -> str:
    if name and (Path(name).suffix != ".html" or Path(name).is_dir()):
        raise PydanticCustomError("page", "the name of a page ends in .html, as in page.html")
    return name


def _check_watchers(names: str) -> str:
    for name in names.split(","):
        if name not in ("", *WATCHERS):
            raise PydanticCustomError("watchers", f"should be one of {', '.join(WATCHERS)}")
    return names


Corpus = Annotated[FileName, AfterValidator(_check_markov)]
Watchers = Annotated[Text, AfterValidator(_check_watchers)]
# so that no page replaces a text or a checkpoint
Page = Annotated[FileName, AfterValidator(_check_page)]
