"""Options of earlier editions, in today's words: of recipes, command lines, runs and checkpoints.

Each is translated, or refused in a line that says what to write instead.
"""

from typing import Any

from config.values import parse_markov

Options = dict[str, Any]

GPT2: Options = {
    "bias": True,
    "position": "learned",
    "norm": "layernorm",
    "activation": "gelu",
    "zero_init": False,
}
# `form` stands for these.
FORMS: dict[str, Options] = {
    "nanochat": {
        "bias": False,
        "position": "rotary",
        "norm": "rmsnorm",
        "activation": "relu2",
        "zero_init": True,
    },
    "gpt2": GPT2,
    "nanogpt": GPT2 | {"bias": False},
}
WRITE_FORM = (
    "form replaces bias, position, norm, activation and zero_init: write form=nanochat (rotary, "
    "rmsnorm, relu2, a start at zero), gpt2 (learned, layernorm, gelu, biases) or nanogpt (gpt2 "
    "without biases)"
)
# These had one default, whatever the form.
SWITCHES = {"qk_norm": True, "embedding_norm": True, "tied": False}

MARKOV = ("markov_order", "markov_alphabet", "markov_temperature")  # the corpus's name has them

GONE = {
    "ngram_rows": "write table_rows in [tables]",
    "parallel": "torchrun's ranks always divide each batch",
    "explain_batch": "python data/prepare.py RECIPE --show_batch shows a batch",
}

SECTIONS = (
    dict.fromkeys([*FORMS["nanochat"], "ngram_embedding"], "model")
    | dict.fromkeys(MARKOV, "data")
    | {"tracker": "run"}
    | dict.fromkeys(GONE, "run")
)


def take_old_words(given: dict[str, str]) -> dict[str, str]:
    """Take words such as "--bias=true" out of the command line's, and return {option: text}."""
    found = {}
    for word in list(given):
        name, _, text = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in SECTIONS:
            found[name] = text or "true"
            del given[word]
    return found


def todays_words(words: dict[str, str], options: dict[str, Any]) -> dict[str, str]:
    """Return the options of today, as the command line says them, that old ones became."""
    names = {"model": "form", "data": "corpus", "run": "watchers"}
    new = [names[SECTIONS[word]] for word in words]
    return {name: str(options[name]) for name in new}


def translate(options: Options, is_saved: bool) -> list[str]:
    """Replace old options in a section of a recipe, or among those that a checkpoint keeps.

    Returns what cannot be translated, a line each. What only the start of a training needs counts
    no more where it is saved.
    """
    problems = _translate_form(options, is_saved)
    problems += _translate_markov(options, is_saved)
    problems += _refuse_ngrams(options)
    if is_saved and "n_embd" in options:
        options.setdefault("smear", False)  # of before there was such an option
    tracker = options.pop("tracker", "none")
    if tracker != "none":
        options["watchers"] = f"{options.get('watchers', 'page')},{tracker}"
    for name, reason in GONE.items():
        value = _read(options.pop(name, ""))
        if value and not is_saved:
            problems.append(f"{name}={value}: this option is gone: {reason}")
    return problems


def _translate_form(options: Options, is_saved: bool) -> list[str]:
    named = {}
    for name in FORMS["nanochat"]:
        if name in options:
            named[name] = _read(options.pop(name))
    if not named:
        return []
    asked = FORMS.get(options.get("form", "nanochat"), {}) | named
    if is_saved:
        asked.pop("zero_init", None)
    # those that have all of what is asked
    forms = [form for form, values in FORMS.items() if asked.items() <= values.items()]
    if not forms:
        words = ", ".join(f"{name}={value}" for name, value in named.items())
        return [f"{words}: {WRITE_FORM}"]
    if "form" not in options:
        for name, value in SWITCHES.items():
            options.setdefault(name, value)
    options["form"] = forms[0]
    return []


def _translate_markov(options: Options, is_saved: bool) -> list[str]:
    named = {name: str(options.pop(name)) for name in MARKOV if name in options}
    if not named:
        return []
    defaults = dict(zip(MARKOV, ("2", "27", "0.5"), strict=True))
    corpus = str(options.get("corpus", ""))
    markov = parse_markov(corpus)
    if markov is None:
        changed = [f"{name}={value}" for name, value in named.items() if value != defaults[name]]
        if is_saved or not changed:
            return []
        return [f"{', '.join(changed)}: write --corpus=markov-ORDER-ALPHABET-TEMPERATURE instead"]
    asked = dict(zip(MARKOV, map(str, markov), strict=True)) | named
    options["corpus"] = "-".join(["markov", *asked.values()])
    if asked == defaults:
        options["corpus"] = "markov"
    return []


def _refuse_ngrams(options: Options) -> list[str]:
    """Refuse dense tables, whose rows were chosen and learned in another way."""
    longest = str(options.pop("ngram_embedding", 0))
    if longest in ("0", "1"):
        return []
    return [
        f"ngram_embedding={longest}: this edition cannot read dense tables of n-grams; train anew "
        f"with max_ngram={longest} in [tables]"
    ]


def _read(value: Any) -> Any:
    """Read a word of the command line as TOML has it."""
    return {"true": True, "false": False}.get(str(value).lower(), value)
