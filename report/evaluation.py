"""What evaluate.py found, in words and small tables."""

from collections.abc import Sequence
from typing import Any

from report.analysis import MAX_TEMPERATURE, RESAMPLES, Estimate

UNITS = [("nats per token", "nats_per_token", ".4f"), ("bits per token", "bits_per_token", ".4f"),
         ("bits per byte", "bits_per_byte", ".4f"), ("perplexity", "perplexity", ".3f"), ("top-1", "top1", ".2%"),
         ("top-5", "top5", ".2%")]
GROUPS = {"context": "context length", "character": "kind of character", "frequency": "in training"}
TELLING = 0.005  # a difference of confidence and accuracy that is worth a word
SAME = 1e-6  # nats that are rounding
TOO_FEW = 30  # blocks, for a trustworthy interval


def describe(found: dict[str, Any]) -> str:
    """All of it, part by part."""
    stride = "" if found["stride"] == found["block_size"] else f" that moves on by {found['stride']:,} tokens"
    parts = [f"{found['run']}, {found['checkpoint']} checkpoint of step {found['step']:,}, on {found['text']}: "
             f"{found['loss']['tokens']:,} targets, {found['loss']['bytes']:,} bytes,\neach once, in a window of "
             f"{found['block_size']:,}{stride}; {found['device']}",
             _losses(found["loss"]), "\n".join(_remarks(found))]
    if found["against"]:
        parts.append(_comparison(found["against"]))
    parts.append(_calibration(found["calibration"], found["loss"]["top1"]["value"]))
    parts += [_groups(GROUPS[kind], groups) for kind, groups in found["groups"].items()]
    return "\n\n".join(parts)


def _losses(loss: dict[str, Any]) -> str:
    lines = ["                       value       95% interval"]
    for title, name, form in UNITS:
        lines.append(f"  {title:<16}{loss[name]['value']:>10{form}}   {loss[name]['low']:{form}} to "
                     f"{loss[name]['high']:{form}}")
    return "\n".join(lines)


def _remarks(found: dict[str, Any]) -> list[str]:
    lines = [f"Intervals: {RESAMPLES:,} resamples of the text's {found['blocks']:,} blocks of "
             f"{found['block_bytes']:,} bytes" + ("; too few to be trusted." if found["blocks"] < TOO_FEW else ".")]
    nll, logged = found["loss"]["nats_per_token"]["value"], found["logged_nll"]
    if logged is not None and found["stride"] < found["block_size"]:
        lines.append(f"Training logged {logged:.6f} nats per token, with windows side by side; the longer contexts of "
                     f"the stride lower it by {logged - nll:.4f}.")
    elif logged is not None:
        lines.append(f"Training logged {logged:.6f} nats per token: " + (
            "the same." if abs(nll - logged) < SAME else
            f"{abs(nll - logged):.0e} away, because of another device or precision."))
    if found["kl_gap"] is not None:
        lines.append(f"KL(source || model) is {found['kl_gap']:.4f}: the loss above that of the text's source.")
    if found["beats"] or found["ahead"]:
        lines.append(f"It beats {', '.join(each['name'] for each in found['beats']) or 'none of the baselines'}"
                     + ("." if found["ahead"] else ": all of the baselines."))
    if found["ahead"]:
        ahead = (f"{each['name']} ({each['nats_per_token']:.3f})" for each in found["ahead"])
        lines.append(f"Ahead: {', '.join(ahead)}.")
    return lines + found["notes"]


def _comparison(against: dict[str, Any]) -> str:
    lines = [f"Against {against['run']} of step {against['step']:,}, on the same resamples:"]
    for unit, name in (("nats per token", "nats_per_token"), ("bits per byte", "bits_per_byte")):
        if against[name]:
            lines.append(f"  {difference(against[name])} {unit} than its {against['loss'][name]['value']:.4f}")
    lines.append("  The difference " + ("may be noise: its interval holds 0." if against["noise"] else
                                        "is not noise: its interval does not hold 0.")
                 + " This is about this text, not about other seeds.")
    if against["kl"]:
        lines.append(f"  KL(this || other) = {against['kl']['value']:.4f} and KL(other || this) = "
                     f"{against['kl_back']['value']:.4f} nats per token.")
    else:
        lines.append("  The two use different tokens: only bits per byte can be compared, and there is no KL.")
    return "\n".join(lines)


def difference(estimate: Estimate) -> str:
    """The size of a difference, with its interval in the same direction."""
    sign = -1 if estimate["value"] < 0 else 1
    low, high = sorted([sign * estimate["low"], sign * estimate["high"]])
    return f"{abs(estimate['value']):.4f} ({low:.4f} to {high:.4f}) {'fewer' if sign < 0 else 'more'}"


def _calibration(found: dict[str, Any], top1: float) -> str:
    total = sum(each["tokens"] for each in found["bins"])
    confidence = sum(each["tokens"] * each["confidence"] for each in found["bins"]) / total
    lean = ("calibrated" if abs(confidence - top1) < TELLING else
            "overconfident" if confidence > top1 else "underconfident")
    edge = " or beyond" if not 1.01 / MAX_TEMPERATURE < found["temperature"] < 0.99 * MAX_TEMPERATURE else ""
    lines = ["  confidence            share of tokens    mean confidence    accuracy"]
    for each in found["bins"]:
        span = f"{each['low']:.0%} to {each['high']:.0%}"
        lines.append(f"  {span:<21}{each['tokens'] / total:16.1%}{each['confidence']:19.1%}{each['accuracy']:12.1%}")
    return "\n".join([*lines, "", f"Calibration: mean confidence {confidence:.1%}, accuracy {top1:.1%}: {lean}. ECE "
                      f"{found['ece']:.2%}.", f"The temperature with the lowest loss is {found['temperature']:.3f}"
                      f"{edge}; it gains {found['nats_gained']:.4f} nats per token, but was fitted to this text."])


def _groups(title: str, groups: Sequence[dict[str, Any]]) -> str:
    lines = [f"  {title:<20}share of tokens   nats/token   share of the loss    top-1"]
    lines += [f"  {each['name']:<20}{each['share']:15.1%}{each['nats_per_token']:13.4f}{each['share_of_nats']:20.1%}"
              f"{each['top1']:9.1%}" for each in groups]
    return "\n".join(lines)
