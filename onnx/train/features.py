"""The SqueezeNet feature distance of `sdl bench`, differentiable: mean over seven layers of the squared difference of channel-normalised
features. The weights are third-party and stay outside: they are read from the graph that the bench measures with."""

import onnx
import torch
import torch.nn as nn
import torch.nn.functional as F
from onnx import numpy_helper

MEAN = (103.939, 116.779, 123.68)  # blue, green, red
POOL_AFTER = {1, 3, 5}  # conv1, fire3, fire5: a 3x3 maximum of stride 2 follows
COMPARED = {1, 3, 5, 6, 7, 8, 9}


class FeatureDistance(nn.Module):
    """Two pictures (N, 3, H, W), sRGB in [0, 1] -> distance (N). Frozen; the gradient goes to the first one."""

    def __init__(self, path):
        super().__init__()
        for tensor in onnx.load(path).graph.initializer:
            if tensor.name.startswith("p."):
                value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
                if value.dim() == 4:
                    value = value.contiguous(memory_format=torch.channels_last)
                self.register_buffer(tensor.name[2:], value, persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)

    def conv(self, x, name, **options):
        return F.relu(F.conv2d(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"), **options))

    def features(self, x):
        """The compared layers, each position of length 1 over the channels."""
        x = self.conv(x.flip(1) * 255 - self.mean, "conv1", stride=2)
        result = []
        for layer in range(1, 10):
            if layer > 1:
                x = self.conv(x, f"fire{layer}_squeeze1x1")
                x = torch.cat([self.conv(x, f"fire{layer}_expand1x1"), self.conv(x, f"fire{layer}_expand3x3", padding=1)], 1)
            if layer in COMPARED:
                wide = x.float()  # differences of nearly equal numbers
                result.append(wide / torch.sqrt(wide.square().sum(1, keepdim=True) + 1e-10))
            if layer in POOL_AFTER:
                x = F.max_pool2d(x, 3, 2)
        return result

    def forward(self, a, b):
        with torch.no_grad():
            wanted = self.features(b)
        return sum((p - q).square().sum(1).mean((1, 2)) for p, q in zip(self.features(a), wanted)) / len(COMPARED)
