"""Says what evaluate.py measured: the loss and what it means, then small tables."""

from typing import Any

from config.terminal import fit_number
from data.info import Baseline, beside_baselines
from report.intervals import FEW, RESAMPLES, Blocks

UNITS = [
    ("nats per token", "nats_per_token", ".4f"),
    ("bits per token", "bits_per_token", ".4f"),
    ("bits per byte", "bits_per_byte", ".4f"),
    ("perplexity", "perplexity", ".3f"),
    ("top-1", "top1", ".2%"),
    ("top-5", "top5", ".2%"),
]


def in_words(evaluation: dict[str, Any]) -> str:
    """Say all of an evaluation, part by part; `--json` prints the same."""
    parts = [
        _headline(evaluation) + _learning(evaluation) + _remarks(evaluation),
        _members(evaluation),
        _comparison(evaluation),
        _mixture(evaluation),
        _targets(evaluation),
        _losses(evaluation["loss"], Blocks(**evaluation["blocks"])),
        _calibration(evaluation),
        _tables(evaluation.get("tables", {})),
    ]
    for kind, groups in evaluation["groups"].items():
        parts.append(_table(kind, groups))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _headline(evaluation: dict[str, Any]) -> list[str]:
    loss = {unit: estimate["value"] for unit, estimate in evaluation["loss"].items()}
    perplexity = fit_number(loss["perplexity"], 10, ".3f")
    learns = ""
    if "dynamic" in evaluation:
        learns = " learns while it reads, and"
    return [
        f"{_name(evaluation)}{learns} has a loss of {loss['nats_per_token']:.4f} nats per token on "
        f"{evaluation['text']}:",
        f"  {loss['bits_per_byte']:.4f} bits per byte; perplexity {perplexity}; "
        f"top-1 accuracy {loss['top1']:.2%}.",
    ]


def _name(about: dict[str, Any]) -> str:
    """Name the model that was measured, or the ensemble."""
    if "members" in about:
        return f"The mean of the probabilities of {len(about['members'])} runs"
    return f"{about['run']}, {about['checkpoint']} checkpoint of step {about['step']:,},"


def _members(evaluation: dict[str, Any]) -> list[str]:
    """Say what the loss of each run of an ensemble is, and what their mean gains."""
    if "members" not in evaluation:
        return []
    lines = ["The runs by themselves, on the same targets and the same resamples:"]
    for member in evaluation["members"]:
        lines.append(f"  {_name(member)} has")
        lines += [f"    {line}" for line in _loss_and_gain(member, "mean")]
    return lines


def _loss_and_gain(compared: dict[str, Any], who: str, part: str = "") -> list[str]:
    """Say what a loss is, of which part of the targets, and what the mean or the mixture gains."""
    loss = compared["loss"]
    value, low, high = loss["nats_per_token"].values()
    gain, least, most = compared["gain"]["nats_per_token"].values()
    perplexity = fit_number(loss["perplexity"]["value"], 10, ".3f")
    return [
        f"{value:.4f} nats per token{part} ({low:.4f} to {high:.4f}), "
        f"{loss['bits_per_byte']['value']:.4f} bits per byte,",
        f"perplexity {perplexity}; the {who} gains {gain:+.4f} nats per token "
        f"({least:+.4f} to {most:+.4f})",
    ]


def _learning(about: dict[str, Any]) -> list[str]:
    """Say what a model that learned has standing still, and what learning gains."""
    if "dynamic" not in about:
        return []
    dynamic = about["dynamic"]
    value, low, high = dynamic["standing_still"]["nats_per_token"].values()
    gain, least, most = dynamic["gain"]["nats_per_token"].values()
    rates = f"{dynamic['learning_rate']:g} by AdamW"
    if dynamic["table_learning_rate"] is not None:
        rates += f", tables of n-grams {dynamic['table_learning_rate']:g} by AdaGrad"
    lines = [
        f"  Standing still, in the same windows, it has {value:.4f} ({low:.4f} to {high:.4f}).",
        f"  Learning gains {gain:+.4f} nats per token ({least:+.4f} to {most:+.4f}):",
        f"  {dynamic['gain_of_first_tenth']:+.4f} in the first tenth of the text, "
        f"{dynamic['gain_of_last_tenth']:+.4f} in the last;",
        f"  {about['steps']:,} steps, each on at most {about['stride']:,} targets, after these "
        "were predicted and counted;",
        f"  rates: {rates}.",
    ]
    if about["english"]:
        lines.append(f"  {about['english']}")
    return lines


def _mixture(evaluation: dict[str, Any]) -> list[str]:
    """Say what the loss of a mixture with an n-gram is, and what it gains."""
    if "mix" not in evaluation:
        return []
    mix = evaluation["mix"]
    name = mix["with"]
    part = ""
    if mix["targets"] < evaluation["targets"]:
        part = f" of the first {mix['targets']:,} targets"
    return [
        f"Mixed with the {name}, each target with the weights that were best before it:",
        *[f"  {line}" for line in _loss_and_gain(mix, "mixture", part)],
        f"  mean weight of the model {mix['weight']:.3f}; the {name} alone has "
        f"{mix['ngram_nats_per_token']:.4f}",
    ]


def _tables(by_longest: dict[int, float]) -> list[str]:
    """Say what the loss is as tables of n-grams are left out, the longest first."""
    if not by_longest:
        return []
    lines = ["The loss with tables of n-grams up to so many tokens only, in nats per token:"]
    for longest, nll in by_longest.items():
        name = str(longest) if longest > 1 else "none"
        lines.append(f"  {name:>4} {nll:8.4f}")
    return lines


def _targets(evaluation: dict[str, Any]) -> list[str]:
    part = ""
    if evaluation["targets"] < evaluation["of_targets"]:
        of_targets = evaluation["of_targets"]
        which = "the first ones" if "dynamic" in evaluation else "spread evenly"
        part = f" of {of_targets:,}, {which} (--max_tokens=0 evaluates all)"
    members = evaluation.get("members", [evaluation])
    sizes = sorted({member["block_size"] for member in members})
    window = " or ".join(f"{size:,}" for size in sizes)
    moves = ""
    if "dynamic" in evaluation:
        window = f"{evaluation['stride'] + evaluation['context']:,}"
    if evaluation["stride"] < evaluation["block_size"]:
        moves = f" that moves on by {evaluation['stride']:,} tokens"
    return [
        f"Measured on {evaluation['targets']:,} targets{part}, {evaluation['bytes']:,} bytes, each "
        f"once, in a window of {window}{moves}; {evaluation['device']}"
    ]


def _losses(loss: dict[str, Any], blocks: Blocks) -> list[str]:
    ends = "95% interval" if blocks.of_documents else "range of 95% of the resamples"
    lines = [f"                       value   {ends}"]
    for title, unit, form in UNITS:
        value, low, high = (fit_number(end, 10, form) for end in loss[unit].values())
        lines.append(f"  {title:<16}{value:>10}   {low} to {high}")
    return [*lines, "", *claim(blocks)]


def claim(blocks: Blocks) -> list[str]:
    """Say what the resamples of a text show, and about what."""
    if blocks.of_documents:
        return [
            "The intervals are for other documents of the same source, if these are a random "
            f"sample of it: {RESAMPLES:,} resamples of {blocks.number} blocks of whole documents."
        ]
    return [
        f"The ranges show how much the loss varies in this text: {RESAMPLES:,} resamples of "
        f"its {blocks.number} parts.",
        "They say nothing about another text, which can differ as a whole.",
    ]


def _remarks(evaluation: dict[str, Any]) -> list[str]:
    lines = unknown_lines(evaluation.get("unknown"))
    if "unknown_masked" in evaluation:
        masked = evaluation["unknown_masked"]
        lines.append(f"In masked text, whose characters cost nothing: {masked}.")
    if evaluation["kl_gap"] is not None:
        lines.append(
            f"KL(source || model) is {evaluation['kl_gap']:.4f}: the loss above that of the text's "
            "source."
        )
    if evaluation["baselines"]:
        nll = evaluation["loss"]["nats_per_token"]["value"]
        baselines = [Baseline(**each) for each in evaluation["baselines"]]
        if "dynamic" in evaluation:
            # each beside those of its kind
            still = evaluation["dynamic"]["standing_still"]["nats_per_token"]["value"]
            lines.append("Standing still:")
            lines += beside_baselines(still, [each for each in baselines if not each.learns])
            lines.append("Learning:")
            baselines = [each for each in baselines if each.learns]
        lines += beside_baselines(nll, baselines)
    return lines


def unknown_lines(unknown: dict[str, Any] | None) -> list[str]:
    """Say what was replaced in a text, and what that costs."""
    if unknown is None:
        return []
    return [
        f"{unknown['says']}.",
        "The figures are of the text as it was read. A list of what the characters were takes "
        f"{unknown['bits']:,} bits more (as in compress.py): with it, the text as it stands costs "
        f"{unknown['bits_per_byte']:.4f} bits per byte.",
    ]


def _comparison(evaluation: dict[str, Any]) -> list[str]:
    against = evaluation["against"]
    if against is None:
        return []
    targets = "the same targets"
    if evaluation["bytes"] != against["bytes"]:
        targets = f"{against['bytes']:,} bytes, as their first tokens differ,"
    lines = [
        f"Compared with {against['run']} of step {against['step']:,}, on {targets} and the same "
        "resamples:"
    ]
    if against["other_targets"]:
        lines.append(
            "  It was trained with another mask: these are not the targets that it was trained on."
        )
    if "dynamic" in against:
        still = against["dynamic"]["standing_still"]["nats_per_token"]["value"]
        lines.append(f"  It learned too; standing still it has {still:.4f} nats per token.")
    if against["may_have_seen_it"]:
        lines.append("  It was trained on another text or split, and may have seen this one.")
    lines.append(_judge_difference(evaluation))
    for title, unit, _ in UNITS:
        if unit in against["difference"]:
            own = evaluation["loss"][unit]["value"]
            other = against["loss"][unit]["value"]
            value, low, high = against["difference"][unit].values()
            lines.append(
                f"  {title:<15}{own:.4f}, its {other:.4f}, "
                f"difference {value:+.4f} ({low:+.4f} to {high:+.4f})"
            )
    if "nats_per_token" not in against["difference"]:
        lines.append("  The two use different tokens: only bits per byte can be compared.")
    return lines


def _judge_difference(evaluation: dict[str, Any]) -> str:
    """Say whether the difference of two runs may be noise."""
    if evaluation["targets"] < FEW:
        return (
            "  It is too short to tell whether the difference is noise: fewer than "
            f"{FEW:,} targets."
        )
    _, low, high = evaluation["against"]["difference"]["bits_per_byte"].values()
    is_noise = low <= 0 <= high
    if evaluation["blocks"]["of_documents"]:
        about = "This is about such documents, not about other seeds."
        if is_noise:
            return f"  The difference may be noise: its interval contains 0. {about}"
        return f"  The difference is more than noise: its interval does not contain 0. {about}"
    about = "Another text or another seed may differ."
    if is_noise:
        return f"  The difference may be noise: its range contains 0. {about}"
    return (
        f"  The difference is more than noise in this text: its range does not contain 0. {about}"
    )


def _calibration(evaluation: dict[str, Any]) -> list[str]:
    calibration = evaluation["calibration"]
    top1 = evaluation["loss"]["top1"]["value"]
    excess = calibration["confidence"] - top1
    over = "over" if excess > 0 else "under"
    end = ", the end of what was tried" if calibration["at_end"] else ""
    lines = [
        f"Calibration: mean confidence {calibration['confidence']:.1%}, accuracy {top1:.1%}: "
        f"{over}confident by {abs(excess):.1%}. ECE {calibration['ece']:.2%}.",
        f"The temperature with the lowest loss is {calibration['temperature']:.3f}{end}; it gains "
        f"{calibration['nats_gained']:.4f} nats per token, but was fitted to this text.",
    ]
    if evaluation["targets"] < FEW:
        lines.append(f"With fewer than {FEW:,} targets, these differ by chance.")
    return lines


def _table(kind: str, groups: list[dict[str, Any]]) -> list[str]:
    title = f"  {kind:<20} of tokens  nats/token  of the loss   top-1"
    has_confidence = all(each["confidence"] is not None for each in groups)
    lines = [f"{title}  confidence" if has_confidence else title]
    for each in groups:
        line = (
            f"  {each['name']:<20}{each['share']:10.1%}{each['nats_per_token']:12.4f}"
            f"{each['share_of_nats']:13.1%}{each['top1']:8.1%}"
        )
        if has_confidence:
            line += f"{each['confidence']:12.1%}"
        lines.append(line)
    return lines
