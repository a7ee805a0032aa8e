"""Keeps PyTorch's optimizers from importing its compiler, which takes 2 s and is not used there.

PyTorch wraps some methods of optimizers so that torch.compile leaves them alone. Each wrapper first
looks for `__dynamo_disable` on its function, and imports the compiler only if it is missing. What
stands there is called instead, so here it is the method itself.
"""

import inspect

import torch

for _name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
    _method = inspect.unwrap(getattr(torch.optim.Optimizer, _name))
    vars(_method).setdefault("__dynamo_disable", _method)


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW without the wrappers of its step; one of them was no_grad."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
