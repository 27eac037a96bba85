"""Muon (Jordan et al. 2024): momentum made orthogonal by Newton-Schulz, for the 1x1 convolutions, which are matrices."""

import torch


# A processor without them is slower in bf16.
MATRIX_UNITS = torch.cpu._is_amx_tile_supported()


def orthogonalise(g: torch.Tensor, steps=5) -> torch.Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if g.is_cuda or MATRIX_UNITS else g
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        s = x @ x.T
        x = torch.addmm(x, torch.addmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Update scaled to an RMS of 0.2, that of a usual Adam step, so both share one learning rate."""

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad.float()
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(g)
                m = state["momentum"].lerp_(g, 1 - group["momentum"])
                update = g.lerp(m, group["momentum"]).reshape(p.shape[0], -1)
                update = orthogonalise(update)
                p.add_(update.view_as(p), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)
