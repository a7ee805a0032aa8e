"""Text from a random Markov source, whose entropy rate is known: no model can have a lower expected
loss.
"""

import string

import numpy as np

# Shannon's 27 symbols come first
ALPHABET = " " + string.ascii_lowercase + string.ascii_uppercase + string.digits
SUCCESSORS = 4  # symbols that may follow a context
UNITS = 256  # probabilities are whole numbers of 1 / UNITS, so that a random byte draws a symbol
SEED = 0
LENGTH = 2_000_000  # symbols of text


class MarkovSource:
    """After each context, the last `order` symbols, comes one of a few symbols, each with its own
    probability.

    The space, symbol 0, may follow every context. So any context can reach the context of spaces
    only, and that can follow itself: the chain has one recurrent class without a period, and its
    stationary distribution is unique. The text depends on the three arguments only. A low
    `temperature` makes one successor likely, a high one makes all equally likely.
    """

    def __init__(self, order: int, alphabet: int, temperature: float) -> None:
        self.alphabet = alphabet
        # a context is a number, and the symbols in it are its digits
        contexts = np.arange(alphabet**order)
        rng = np.random.default_rng(SEED)
        others = rng.random((len(contexts), alphabet - 1)).argsort(axis=1)[:, : SUCCESSORS - 1] + 1
        logits = rng.standard_normal((len(contexts), others.shape[1] + 1)) / temperature
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        units = (
            np.rint(UNITS * weights / weights.sum(axis=1, keepdims=True))
            .clip(min=1)
            .astype(np.int64)
        )
        units[contexts, logits.argmax(axis=1)] += UNITS - units.sum(axis=1)
        self.successors = np.pad(others, ((0, 0), (1, 0)))  # (contexts, S) symbols
        self.units = units  # (contexts, S)
        # p(s | c) of each context c and each of its S successors s
        self.probabilities = units / UNITS
        self.next_contexts = (contexts[:, None] * alphabet + self.successors) % len(contexts)
        self.stationary = self._find_stationary()  # (contexts,)

    @property
    def entropy_rate(self) -> float:
        """H = sum over contexts c of pi(c) H(p(. | c)), in nats per symbol, to machine precision."""
        return float(
            -self.stationary @ (self.probabilities * np.log(self.probabilities)).sum(axis=1)
        )

    def _find_stationary(self) -> np.ndarray:
        """pi = pi P, (contexts,): apply P until only rounding changes."""
        pi, change = np.full(len(self.units), 1 / len(self.units)), 1.0
        while change > 1e-14:  # the sum of |pi P - pi|
            flow = (pi[:, None] * self.probabilities).ravel()
            moved = np.bincount(self.next_contexts.ravel(), flow, minlength=len(pi))
            change = float(np.abs(moved - pi).sum())
            pi = moved / moved.sum()
        return pi

    def sample(self, length: int) -> tuple[str, np.ndarray]:
        """A text in the stationary state, and the source's own surprisal at each symbol, in nats,
        (length,).
        """
        rng = np.random.default_rng(SEED + 1)
        drawn_by = (
            np.repeat(self.successors.ravel(), self.units.ravel())
            .astype(np.uint8)
            .reshape(-1, UNITS)
        )
        table, alphabet, contexts = (
            [row.tobytes() for row in drawn_by],
            self.alphabet,
            len(drawn_by),
        )
        path = [context := int(rng.choice(contexts, p=self.stationary))]
        path += [
            context := (context * alphabet + table[context][byte]) % contexts
            for byte in rng.bytes(length)
        ]
        before, after = np.array(path[:-1]), np.array(path[1:])
        chosen = self.next_contexts[before] == after[:, None]  # (length, S), true once in a row
        symbols = (after % self.alphabet).astype(np.uint8)
        text = np.frombuffer(ALPHABET.encode(), dtype=np.uint8)[symbols].tobytes().decode()
        return text, -np.log(self.probabilities[before][chosen])
