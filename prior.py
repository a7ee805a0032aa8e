"""What counting n-grams predicts, for a model to start from.

A network of this size takes most of its training to learn what a table of n-grams knows at once. Given the
table's predictions, it learns when to trust them, and what they miss.
"""

import torch
from torch import Tensor, nn

from data.ngrams import NGrams

SPELLED_OUT = 2**20  # probabilities of short contexts that are kept ready, in each view


class NGramPrior(nn.Module):
    """Tokens (B, T) to log-probabilities (B, T, V) of the token after each, from those of the window before it.

    In training the counts have to leave out the text that is predicted, or they would know it: a token in
    part p of the training text is predicted from those of view p.
    """

    keys: Tensor
    tokens: Tensor
    first: Tensor
    share: Tensor
    backoff: Tensor
    ready: Tensor

    def __init__(self, ngrams: NGrams) -> None:
        super().__init__()
        self.vocab_size, self.order, self.count = ngrams.vocab_size, ngrams.order, len(ngrams.keys)
        self.nowhere = self.count + 1  # the last node: of a context that was never seen
        keys = torch.from_numpy(ngrams.keys)
        first = torch.searchsorted(keys, torch.arange(self.nowhere + 2) * self.vocab_size)
        share, backoff = torch.from_numpy(ngrams.share), torch.from_numpy(ngrams.backoff)
        for name, tensor in {
                "keys": keys, "tokens": keys % self.vocab_size, "first": first,  # child of each node, an index of keys
                "share": share, "backoff": backoff}.items():
            self.register_buffer(name, tensor, persistent=False)  # counts are saved once, not with each checkpoint
        self.register_buffer("ready", self._spell_out(), persistent=False)

    @torch.no_grad()
    def forward(self, tokens: Tensor, left_out: Tensor | None = None) -> Tensor:
        """`left_out` (B, T) is the part that each predicted token is in; 0, as None, leaves nothing out."""
        B, T = tokens.shape
        V, (views, ready) = self.vocab_size, self.ready.shape[:2]
        view = torch.zeros_like(tokens) if left_out is None or views == 1 else left_out
        view = view.flatten()  # (N,) as there are N = B T places
        contexts = self._contexts(tokens)
        start = torch.zeros_like(view)
        for node in contexts:  # those kept ready are the shorter ones
            start = torch.where(node < ready, node, start)
        p = self.ready.view(-1, V)[view * ready + start]  # (N, V)
        for node in contexts:
            node = torch.where(node < ready, self.nowhere, node)
            p *= self.backoff.view(-1)[view * (self.nowhere + 1) + node][:, None]
            place, child = self._children(node)
            p.view(-1)[place * V + self.tokens[child]] += self.share.view(-1)[view[place] * self.count + child]
        return p.log_().view(B, T, V)

    def _contexts(self, tokens: Tensor) -> list[Tensor]:
        """The nodes (N,) of the last 1, 2, ... order - 1 tokens at each place."""
        contexts: list[Tensor] = []
        for _ in range(1, self.order):
            before = torch.zeros_like(tokens)
            if contexts:
                before = torch.full_like(tokens, self.nowhere)
                before[:, 1:] = contexts[-1].view(tokens.shape)[:, :-1]
            contexts.append(self._child(before, tokens).flatten())
        return contexts

    def _child(self, node: Tensor, token: Tensor) -> Tensor:
        key = node * self.vocab_size + token
        at = torch.searchsorted(self.keys, key).clamp_max(self.count - 1)
        return torch.where(self.keys[at] == key, at + 1, self.nowhere)

    def _children(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """Of nodes (N,), all children: whose they are, 0 ... N - 1, and where they are in `keys`."""
        first = self.first[node]
        number = self.first[node + 1] - first
        place = torch.repeat_interleave(number)
        return place, torch.arange(len(place), device=node.device) + (first - number.cumsum(0) + number)[place]

    def _spell_out(self) -> Tensor:
        """The probabilities (views, contexts, V) after the contexts of 0, 1, ... tokens: as many as there is room for.

        Most of the children are those of the short contexts; to add them up once is faster.
        """
        V, views = self.vocab_size, len(self.share)
        shorter = torch.zeros(1, dtype=torch.int64)  # of each node so far, that without its first token
        p = torch.full((views, 1, V), 1 / V)  # before anything is counted
        begin, end = 0, 1  # nodes of contexts of one length
        ready: list[Tensor] = []
        while len(ready) < self.order and begin < end and (end * V <= SPELLED_OUT or not ready):
            nodes = torch.arange(begin, end)
            place, child = self._children(nodes)
            level = self.backoff[:, nodes, None] * (torch.cat(ready, dim=1)[:, shorter[nodes]] if ready else p)
            level.view(views, -1)[:, place * V + self.tokens[child]] += self.share[:, child]
            ready.append(level)
            following = torch.arange(end, int(self.first[end]) + 1)  # their children, which are nodes one longer
            parent = self.keys[following - 1] // V
            shorter = torch.cat([shorter, self._child(shorter[parent], self.tokens[following - 1])
                                 if begin else torch.zeros_like(following)])
            begin, end = end, end + len(following)
        return torch.cat(ready, dim=1)
