"""Muon for the matrices, AdamW for everything else, on float32 master copies of a model that computes in bfloat16.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/ (momentum, then the nearest orthogonal matrix by a
Newton-Schulz iteration). Matrices of one shape are treated together, since many small ones cost mostly overhead.
"""

import torch


def orthogonalise(stack: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """(n, r, c) -> each matrix with its singular values brought near one (quintic Newton-Schulz, in bfloat16)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack.bfloat16()
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimiser:
    """`named`: the trained parameters by name; those in `matrices` are Muon's, the others AdamW's.

    `share` gives some of them less than the full learning rate: a factor by name. `scaled` holds how much smaller a
    parameter has been made (`scale`), and its learning rate with it; it is part of the state.
    """

    def __init__(self, named, matrices, share=None, muon_lr=0.02, adam_lr=2e-3, momentum=0.95, betas=(0.9, 0.95)):
        self.named = dict(named)
        self.master = {n: p.detach().float().clone() for n, p in self.named.items()}
        self.first = {n: torch.zeros_like(m) for n, m in self.master.items()}
        self.second = {n: torch.zeros_like(m) for n, m in self.master.items() if n not in matrices}
        self.shapes: dict[tuple, list[str]] = {}
        for n in matrices:
            self.shapes.setdefault(tuple(self.master[n].shape), []).append(n)
        self.muon_lr, self.adam_lr, self.momentum, self.betas = muon_lr, adam_lr, momentum, betas
        self.share = dict.fromkeys(self.named, 1.0) | (share or {})
        self.scaled = dict.fromkeys(self.named, 1.0)
        self.count = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update with both learning rates times `rate`; clears the gradients."""
        self.count += 1
        for (rows, columns), names in self.shapes.items():
            grad = torch.stack([self.named[n].grad for n in names]).float()
            moment = torch.stack([self.first[n] for n in names])
            moment.lerp_(grad, 1 - self.momentum)
            update = orthogonalise(grad.lerp(moment, self.momentum)).float()
            scale = self.muon_lr * rate * max(1.0, rows / columns) ** 0.5
            for n, m, u in zip(names, moment, update, strict=True):
                self.first[n].copy_(m)
                self.master[n].sub_(u, alpha=scale * self.share[n] * self.scaled[n])
        names = list(self.second)
        grad = [self.named[n].grad.float() for n in names]
        first, second = [self.first[n] for n in names], [self.second[n] for n in names]
        torch._foreach_lerp_(first, grad, 1 - self.betas[0])
        torch._foreach_mul_(second, self.betas[1])
        torch._foreach_addcmul_(second, grad, grad, 1 - self.betas[1])
        root = torch._foreach_div(second, 1 - self.betas[1] ** self.count)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, 1e-8)
        size = -self.adam_lr * rate / (1 - self.betas[0] ** self.count)
        update = torch._foreach_div(first, root)
        torch._foreach_mul_(update, [size * self.share[n] * self.scaled[n] for n in names])
        torch._foreach_add_([self.master[n] for n in names], update)
        for n, p in self.named.items():
            p.copy_(self.master[n])
            p.grad = None

    @torch.no_grad()
    def scale(self, name: str, factor: float) -> None:
        """Makes a parameter smaller or larger, and its steps in proportion."""
        self.master[name].mul_(factor)
        self.named[name].copy_(self.master[name])
        self.scaled[name] *= factor

    def state(self) -> dict:
        return {
            "master": self.master,
            "first": self.first,
            "second": self.second,
            "count": self.count,
            "scaled": self.scaled,
        }

    @torch.no_grad()
    def load(self, state: dict, moments: bool = True) -> None:
        """Takes over a saved state; without `moments` only the weights, for a new phase."""
        for n, saved in state["master"].items():
            if n in self.master:
                self.master[n].copy_(saved)
                self.scaled[n] = state["scaled"][n]
        for n, p in self.named.items():
            p.copy_(self.master[n])
        if moments:
            for kind in ("first", "second"):
                for n, saved in state[kind].items():
                    getattr(self, kind)[n].copy_(saved)
            self.count = state["count"]
