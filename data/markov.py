"""Text from a random Markov source, whose entropy rate is known.

No model can have a lower expected loss than the entropy rate.
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
    """Draws one of a few symbols after each context, the last `order` symbols.

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
        ranks = rng.random((len(contexts), alphabet - 1)).argsort(axis=1)
        others = 1 + ranks[:, : SUCCESSORS - 1]  # symbols besides the space
        self.successors = np.pad(others, ((0, 0), (1, 0)))  # (contexts, S)
        self.units = draw_units(self.successors.shape, temperature, rng)  # (contexts, S)
        # p(s | c) of each context c and each of its S successors s
        self.probabilities = self.units / UNITS
        # the oldest symbol leaves the context, and the successor enters it
        self.next_contexts = (contexts[:, None] * alphabet + self.successors) % len(contexts)
        self.stationary = self._find_stationary()  # (contexts,)

    @property
    def entropy_rate(self) -> float:
        """H = sum over contexts c of pi(c) H(p(. | c)), in nats per symbol."""
        p = self.probabilities
        entropies = (p * np.log(p)).sum(axis=1)  # of each context, times -1
        return float(-self.stationary @ entropies)

    def _find_stationary(self) -> np.ndarray:
        """pi = pi P, (contexts,): applies P until only rounding changes."""
        num_contexts = len(self.units)
        pi = np.full(num_contexts, 1 / num_contexts)
        change = 1.0
        while change > 1e-14:  # the sum of |pi P - pi|
            flow = pi[:, None] * self.probabilities
            moved = np.bincount(self.next_contexts.ravel(), flow.ravel(), minlength=num_contexts)
            change = float(np.abs(moved - pi).sum())
            pi = moved / moved.sum()
        return pi

    def sample(self, length: int) -> tuple[str, np.ndarray]:
        """Draw a text in the stationary state.

        Also returns the source's own surprisal at each symbol, in nats, (length,).
        """
        rng = np.random.default_rng(SEED + 1)
        # the successor that each of the 256 bytes draws in each context
        drawn = np.repeat(self.successors.ravel(), self.units.ravel())
        rows = drawn.astype(np.uint8).reshape(-1, UNITS)
        tables = [row.tobytes() for row in rows]

        alphabet = self.alphabet
        num_contexts = len(tables)
        context = int(rng.choice(num_contexts, p=self.stationary))
        path = [context]
        for byte in rng.bytes(length):
            context = (context * alphabet + tables[context][byte]) % num_contexts
            path.append(context)

        before = np.array(path[:-1])
        after = np.array(path[1:])
        is_drawn = self.next_contexts[before] == after[:, None]  # (length, S), true once in a row
        symbols = np.frombuffer(ALPHABET.encode(), dtype=np.uint8)[after % alphabet]
        nll = -np.log(self.probabilities[before][is_drawn])
        return symbols.tobytes().decode(), nll


def draw_units(shape: tuple[int, ...], temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Draw probabilities (contexts, S), in whole numbers of 1 / UNITS, at least 1."""
    logits = rng.standard_normal(shape) / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = weights / weights.sum(axis=1, keepdims=True)
    units = np.rint(UNITS * shares).clip(min=1).astype(np.int64)
    # the likeliest successor gets what rounding took or gave
    likeliest = logits.argmax(axis=1)
    units[np.arange(len(units)), likeliest] += UNITS - units.sum(axis=1)
    return units
