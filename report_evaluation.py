"""What an evaluation found, in words and small tables. Needs no torch."""

from collections.abc import Sequence

from analysis import EXTREME, RESAMPLES, Calibration, Comparison, Estimate, Evaluation, Group, Loss

UNITS = [("nats per token", "nats_per_token", ".4f"), ("bits per token", "bits_per_token", ".4f"),
         ("bits per byte", "bits_per_byte", ".4f"), ("perplexity", "perplexity", ".3f"), ("top-1", "top1", ".2%"),
         ("top-5", "top5", ".2%")]
GROUPS = {"context": "tokens of context", "character": "kind of character", "frequency": "in training"}
TELLING = 0.005  # between confidence and accuracy, to be worth a word
SAME = 1e-6  # nats that are rounding
TOO_FEW = 30  # blocks, for the ends of a 95% interval to be trusted


def words(found: Evaluation) -> str:
    """All of it, part by part."""
    parts = [_head(found), _losses(found.loss), "\n".join(_remarks(found))]
    if found.against:
        parts.append(_comparison(found.against))
    parts.append(_calibration(found.calibration, found.loss.top1.value))
    parts += [_groups(GROUPS[kind], groups) for kind, groups in found.groups.items()]
    return "\n\n".join(part for part in parts if part)


def _head(found: Evaluation) -> str:
    moves = "" if found.stride == found.block_size else f" that moves on by {found.stride:,}"
    return (f"{found.run}, {found.checkpoint}/ of step {found.step:,}, on {found.text}: {found.loss.tokens:,} tokens, "
            f"{found.loss.bytes:,} bytes,\neach token scored once, in a window of {found.block_size:,}{moves}; "
            f"{found.world}")


def _losses(loss: Loss) -> str:
    lines = ["                       value       95% interval"]
    for title, name, form in UNITS:
        estimate = getattr(loss, name)
        lines.append(f"  {title:<16}{estimate.value:>10{form}}   {_range(estimate, form)}")
    return "\n".join(lines)


def _remarks(found: Evaluation) -> list[str]:
    lines = [f"Intervals: {RESAMPLES:,} resamples of the text's {found.blocks:,} blocks of {found.block_bytes:,} bytes"
             + ("; they are too few to be sure." if found.blocks < TOO_FEW else ".")]
    if found.logged_nll is not None:
        gap = found.loss.nats_per_token.value - found.logged_nll
        if found.stride < found.block_size:
            says = f"with windows side by side; the context that the stride adds is worth {-gap:.4f}."
        elif abs(gap) < SAME:
            says = f"here: the same, to {abs(gap):.0e}."
        else:
            says = f"here, {abs(gap):.0e} away: on another device, or in another precision."
        lines.append(f"Training logged {found.logged_nll:.6f} nats per token {says}")
    if found.kl_gap is not None:
        lines.append(f"It is {found.kl_gap:.4f} above what the source itself pays: the KL gap.")
    if found.beats or found.ahead:
        lines.append(f"It beats {', '.join(rung.name for rung in found.beats) or 'none of the baselines'}"
                     + ("." if found.ahead else ": all of the baselines."))
    if found.ahead:
        lines.append(f"Ahead: {', '.join(f'{rung.name} ({rung.nats_per_token:.3f})' for rung in found.ahead)}.")
    return lines + found.notes


def _comparison(against: Comparison) -> str:
    other = f"{against.run} of step {against.step:,}"
    verdict = ("is noise: its interval holds 0. It speaks of this text, not of other seeds." if against.noise else
               "is not noise: its interval keeps clear of 0. It speaks of this text, not of other seeds.")
    lines = [f"Against {other}, on the same resamples:",
             f"  {_difference(against.bits_per_byte)} bits per byte than its {against.loss.bits_per_byte.value:.4f}"]
    if against.nats_per_token:
        lines.insert(1, f"  {_difference(against.nats_per_token)} nats per token than its "
                        f"{against.loss.nats_per_token.value:.4f}")
    lines.append(f"  The difference {verdict}")
    if against.kl and against.kl_back:
        lines.append(f"  The predictions differ by KL(this || other) = {against.kl.value:.4f} and KL(other || this) = "
                     f"{against.kl_back.value:.4f} nats per token.")
    else:
        lines.append("  The tokens are not the same: only bits per byte compare, and no KL.")
    return "\n".join(lines)


def _difference(estimate: Estimate) -> str:
    """The size of a difference, with its interval in the same direction."""
    low, high = sorted([abs(estimate.value) * end / (estimate.value or 1.0) for end in (estimate.low, estimate.high)])
    return f"{abs(estimate.value):.4f} ({low:.4f} to {high:.4f}) {'fewer' if estimate.value < 0 else 'more'}"


def _calibration(found: Calibration, top1: float) -> str:
    total = sum(each.tokens for each in found.bins)
    sure = sum(each.tokens * each.confidence for each in found.bins) / total
    lean = "as it should be" if abs(sure - top1) < TELLING else "too sure" if sure > top1 else "not sure enough"
    edge = " or beyond" if found.temperature in (EXTREME, 1 / EXTREME) else ""
    lines = ["  how sure of its guess   share of tokens   on average   guessed right"]
    lines += [f"  {f'{each.low:.0%} to {each.high:.0%}':<21}{each.tokens / total:18.1%}{each.confidence:13.1%}"
              f"{each.accuracy:16.1%}" for each in found.bins]
    lines += ["", f"Calibration: on average {sure:.1%} sure of its guess, and right {top1:.1%} of the time: {lean}. "
              f"ECE {found.ece:.2%}.", f"The temperature that minimises the loss is {found.temperature:.3f}{edge}; it "
              f"gains {found.nats_gained:.4f} nats per token, being fitted on this very text."]
    return "\n".join(lines)


def _groups(title: str, groups: Sequence[Group]) -> str:
    lines = [f"  {title:<20}share of tokens   nats/token   share of the loss    top-1"]
    lines += [f"  {each.name:<20}{each.share:15.1%}{each.nats_per_token:13.4f}{each.share_of_nats:20.1%}"
              f"{each.top1:9.1%}" for each in groups]
    return "\n".join(lines)


def _range(estimate: Estimate, form: str) -> str:
    return f"{estimate.low:{form}} to {estimate.high:{form}}"
