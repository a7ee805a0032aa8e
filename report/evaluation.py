"""What evaluate.py found, in words and small tables."""

from typing import Any

from data.baselines import Baseline
from report.analysis import FEW, RESAMPLES, Blocks
from report.words import beside_baselines

UNITS = [
    ("nats per token", "nats_per_token", ".4f"),
    ("bits per token", "bits_per_token", ".4f"),
    ("bits per byte", "bits_per_byte", ".4f"),
    ("perplexity", "perplexity", ".3f"),
    ("top-1", "top1", ".2%"),
    ("top-5", "top5", ".2%"),
]


def describe(found: dict[str, Any]) -> str:
    """All of it, part by part; `found` is what `--json` prints."""
    part = (
        ""
        if found["targets"] == found["of_targets"]
        else (f" of {found['of_targets']:,}, spread evenly (--max_tokens=0 evaluates all)")
    )
    moves = (
        ""
        if found["stride"] == found["block_size"]
        else f" that moves on by {found['stride']:,} tokens"
    )
    parts = [
        [
            f"{found['run']}, {found['checkpoint']} checkpoint of step {found['step']:,}, on {found['text']}: "
            f"{found['targets']:,} targets{part}, {found['bytes']:,} bytes,",
            f"each once, in a window of {found['block_size']:,}{moves}; {found['device']}",
        ],
        _losses(found["loss"], Blocks(**found["blocks"])),
        _remarks(found),
        _comparison(found),
        _calibration(found),
        *(_table(kind, groups) for kind, groups in found["groups"].items()),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _losses(loss: dict[str, Any], blocks: Blocks) -> list[str]:
    ends = "95% interval" if blocks.of_documents else "range of 95% of the resamples"
    lines = [f"                       value   {ends}"]
    for title, unit, form in UNITS:
        value, low, high = loss[unit].values()
        lines.append(f"  {title:<16}{value:>10{form}}   {low:{form}} to {high:{form}}")
    return [*lines, "", *claim(blocks)]


def claim(blocks: Blocks) -> list[str]:
    """What the resamples of a text say, and about what."""
    if blocks.of_documents:
        return [
            "The intervals are for other documents of the same source, if these are a random sample",
            f"of it: {RESAMPLES:,} resamples of {blocks.number} blocks of whole documents.",
        ]
    return [
        f"The ranges show how much the loss varies in this text: {RESAMPLES:,} resamples of "
        f"its {blocks.number} parts.",
        "They say nothing about another text, which can differ as a whole.",
    ]


def _remarks(found: dict[str, Any]) -> list[str]:
    lines = unknown_lines(found.get("unknown"))
    if "unknown_masked" in found:
        lines.append(f"In masked text, whose characters cost nothing: {found['unknown_masked']}.")
    if found["kl_gap"] is not None:
        lines.append(
            f"KL(source || model) is {found['kl_gap']:.4f}: the loss above that of the text's source."
        )
    if found["baselines"]:
        nll = found["loss"]["nats_per_token"]["value"]
        lines += beside_baselines(nll, [Baseline(**each) for each in found["baselines"]])
    return lines


def unknown_lines(unknown: dict[str, Any] | None) -> list[str]:
    """What was replaced in a text, and what that costs."""
    if unknown is None:
        return []
    return [
        f"{unknown['says']}.",
        f"The figures are of the text as it was read. A list of what the characters were takes {unknown['bits']:,} "
        f"bits more (as in compress.py):",
        f"with it, the text as it stands costs {unknown['bits_per_byte']:.4f} bits per byte.",
    ]


def _comparison(found: dict[str, Any]) -> list[str]:
    loss, against = found["loss"], found["against"]
    if against is None:
        return []
    targets = (
        "the same targets"
        if found["bytes"] == against["bytes"]
        else f"{against['bytes']:,} bytes, as their first tokens differ,"
    )
    lines = [
        f"Compared with {against['run']} of step {against['step']:,}, on {targets} and the same resamples:"
    ]
    if against["other_targets"]:
        lines.append(
            "  It was trained with another mask: these are not the targets that it was trained on."
        )
    if against["may_have_seen_it"]:
        lines.append("  It was trained on another text or split, and may have seen this one.")
    for title, unit, _ in UNITS:
        if less := against["difference"].get(unit):
            lines.append(
                f"  {title:<15}{loss[unit]['value']:.4f}, its {against['loss'][unit]['value']:.4f}, "
                f"difference {less['value']:+.4f} ({less['low']:+.4f} to {less['high']:+.4f})"
            )
    if "nats_per_token" not in against["difference"]:
        lines.append("  The two use different tokens: only bits per byte can be compared.")
    bits = against["difference"]["bits_per_byte"]
    if found["targets"] < FEW:
        return [
            *lines,
            f"  It is too short to tell whether the difference is noise: fewer than {FEW:,} targets.",
        ]
    is_noise = bits["low"] <= 0 <= bits["high"]
    if found["blocks"]["of_documents"]:
        noise = (
            "may be noise: its interval contains 0."
            if is_noise
            else "is more than noise: its interval does not contain 0."
        )
        about = "This is about such documents, not about other seeds."
        return [*lines, f"  The difference {noise} {about}"]
    noise = (
        "may be noise: its range contains 0."
        if is_noise
        else "is more than noise in this text: its range does not contain 0."
    )
    return [*lines, f"  The difference {noise} Another text or another seed may differ."]


def _calibration(found: dict[str, Any]) -> list[str]:
    calibration, top1 = found["calibration"], found["loss"]["top1"]["value"]
    end = ", the end of what was tried" if calibration["at_end"] else ""
    excess = calibration["confidence"] - top1
    few = (
        [f"With fewer than {FEW:,} targets, these differ by chance."]
        if found["targets"] < FEW
        else []
    )
    return [
        f"Calibration: mean confidence {calibration['confidence']:.1%}, accuracy {top1:.1%}: "
        f"{'over' if excess > 0 else 'under'}confident by {abs(excess):.1%}. ECE {calibration['ece']:.2%}.",
        f"The temperature with the lowest loss is {calibration['temperature']:.3f}{end}; it gains "
        f"{calibration['nats_gained']:.4f} nats per token, but was fitted to this text.",
        *few,
    ]


def _table(kind: str, groups: list[dict[str, Any]]) -> list[str]:
    title = f"  {kind:<20}share of tokens   nats/token   share of the loss    top-1"
    has_confidence = all(each["confidence"] is not None for each in groups)
    lines = [f"{title}   confidence" if has_confidence else title]
    for each in groups:
        line = (
            f"  {each['name']:<20}{each['share']:15.1%}{each['nats_per_token']:13.4f}"
            f"{each['share_of_nats']:20.1%}{each['top1']:9.1%}"
        )
        lines.append(f"{line}{each['confidence']:13.1%}" if has_confidence else line)
    return lines
