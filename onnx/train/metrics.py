"""MS-SSIM (Wang, Simoncelli, Bovik 2003), as a loss on luma and as a measurement on RGB."""

import torch
import torch.nn.functional as F

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _window(device, size=11, sigma=1.5):
    t = torch.arange(size, device=device, dtype=torch.float32) - size // 2
    g = torch.exp(-t * t / (2 * sigma * sigma))
    return g / g.sum()


def _blur(x, g, stride=1):
    c = x.shape[1]
    k = g.numel()
    x = F.conv2d(x, g.view(1, 1, k, 1).repeat(c, 1, 1, 1), stride=(stride, 1), groups=c)
    return F.conv2d(x, g.view(1, 1, 1, k).repeat(c, 1, 1, 1), stride=(1, stride), groups=c)


def ms_ssim(a, b, coarse=False):
    """(N, C, H, W) in [0, 1] -> (N). `coarse` samples the two finest scales at every second position: cheaper, for training."""
    # Variances are differences of nearly equal numbers: in bf16 nothing would be left of them.
    with torch.autocast(a.device.type, enabled=False):
        return _ms_ssim(a.float(), b.float(), coarse)


def _ms_ssim(a, b, coarse):
    g = _window(a.device)
    c = a.shape[1]
    result = 1.0
    for i, weight in enumerate(WEIGHTS):
        stride = 2 if coarse and i < 2 else 1
        s = _blur(torch.cat([a, b, a * a, b * b, a * b], 1), g, stride)
        ma, mb, aa, bb, ab = s.split(c, 1)
        va, vb, cov = aa - ma * ma, bb - mb * mb, ab - ma * mb
        cs = (2 * cov + 0.03**2) / (va + vb + 0.03**2)
        if i == len(WEIGHTS) - 1:
            cs = cs * (2 * ma * mb + 0.01**2) / (ma * ma + mb * mb + 0.01**2)
        result = result * cs.mean((2, 3)).clamp_min(1e-4) ** weight
        if i < len(WEIGHTS) - 1:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return result.mean(1)


def luma(x):
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
