"""A plain training loop on one GPU, after the recipe of insightface's arcface_torch.

Its network (`iresnet`, NCHW, under autocast, the last layer in float32), its head (Partial FC: a
softmax over all classes or a sample of them, with the collective calls that one process makes
too), its optimiser (SGD with two groups, gradients of the backbone clipped at 5), DDP around the
backbone with a static graph, TF32 as PyTorch has it by default, cuDNN's search for algorithms, and
the loss read after every step, all as the public code does it. The process group must be there.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

UNITS = {"R18": (2, 2, 2, 2), "R50": (3, 4, 14, 3), "R100": (3, 13, 30, 3)}


class _Unit(nn.Module):
    def __init__(self, inner: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inner, eps=1e-5),
            nn.Conv2d(inner, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels, eps=1e-5),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels, eps=1e-5),
        )
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inner, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels, eps=1e-5),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class IResNet(nn.Module):
    """Maps float N×3×S×S to embeddings N×512, float32. amp_dtype: of autocast; None: float32."""

    def __init__(self, name: str, amp_dtype: torch.dtype | None, size: int = 112) -> None:
        super().__init__()
        self.amp_dtype = amp_dtype
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False)]
        layers += [nn.BatchNorm2d(64, eps=1e-5), nn.PReLU(64)]
        inner = 64
        for channels, units in zip((64, 128, 256, 512), UNITS[name], strict=True):
            for unit in range(units):
                layers.append(_Unit(inner, channels, 1 if unit else 2))
                inner = channels
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(512, eps=1e-5), nn.Flatten())
        self.fc = nn.Linear(512 * (size // 16) ** 2, 512)
        self.features = nn.BatchNorm1d(512, eps=1e-5)
        nn.init.constant_(self.features.weight, 1.0)
        self.features.weight.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            x = self.layers(x)
        return self.features(self.fc(x.float()))


class _CrossEntropy(torch.autograd.Function):
    """Of logits N×C, which it overwrites, over the classes of all processes."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor) -> Tensor:
        highest = logits.amax(1, keepdim=True)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        logits.sub_(highest).exp_()
        total = logits.sum(1, keepdim=True)
        dist.all_reduce(total)
        logits.div_(total)
        own = torch.where(labels != -1)[0]
        loss = torch.zeros(len(logits), 1, device=logits.device)
        loss[own] = logits[own].gather(1, labels[own])
        dist.all_reduce(loss)
        ctx.save_for_backward(own, logits, labels)
        return -loss.clamp_min_(1e-30).log_().mean()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        own, logits, labels = ctx.saved_tensors
        one_hot = torch.zeros(len(own), logits.shape[1], device=logits.device)
        one_hot.scatter_(1, labels[own], 1)
        logits[own] -= one_hot
        logits.div_(len(logits))
        return logits * gradient.item(), None


class PartialFC(nn.Module):
    """ArcFace over C classes of 512 values, or over a sample of them; s = 64, m = 0.5."""

    def __init__(self, classes: int, rate: float, amp_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, 512))
        self.rate, self.amp_dtype = rate, amp_dtype

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        count = dist.get_world_size()
        gathered = [torch.zeros_like(labels) for _ in range(count)]
        dist.all_gather(gathered, labels)
        rows = [torch.zeros_like(embeddings) for _ in range(count)]
        dist.all_gather(rows, embeddings.detach())
        labels = torch.cat(gathered).view(-1, 1)
        own = (labels >= 0) & (labels < len(self.weight))
        labels[~own] = -1
        weight = self.weight if self.rate == 1 else self._sample(labels, own)
        amp = self.amp_dtype is not None
        with torch.autocast(embeddings.device.type, self.amp_dtype, enabled=amp):
            logits = F.linear(F.normalize(embeddings), F.normalize(weight))
        logits = logits.float().clamp(-1, 1)
        return _CrossEntropy.apply(_arcface(logits, labels), labels)

    def _sample(self, labels: Tensor, own: Tensor) -> Tensor:
        with torch.no_grad():
            positive = torch.unique(labels[own], sorted=True)
            order = torch.rand(len(self.weight)).to(labels.device)
            order[positive] = 2.0
            chosen = order.topk(int(self.rate * len(order)))[1].sort()[0]
            labels[own] = torch.searchsorted(chosen, labels[own])
        return self.weight[chosen]


def _arcface(logits: Tensor, labels: Tensor) -> Tensor:
    index = torch.where(labels != -1)[0]
    target = logits[index, labels[index].view(-1)]
    with torch.no_grad():
        angle = target.arccos() + 0.5
        logits.arccos_()
        logits[index, labels[index].view(-1)] = angle
        logits.cos_()
    return logits * 64.0


class PlainLoop:
    """One training step of the recipe: `loop(images, labels)` returns the loss.

    images: float N×3×S×S and labels int64 N, on the device. name: a network of `UNITS`.
    """

    def __init__(
        self,
        name: str,
        classes: int,
        rate: float,
        amp_dtype: torch.dtype | None,
        device: torch.device,
        size: int = 112,
    ) -> None:
        self.device, self.fp16 = device, amp_dtype == torch.float16
        backbone = IResNet(name, amp_dtype, size).to(device).train()
        index = [device.index or 0] if device.type == "cuda" else None
        self.backbone = DistributedDataParallel(
            backbone, device_ids=index, broadcast_buffers=False, bucket_cap_mb=16, static_graph=True
        )
        with torch.device(device):
            self.head = PartialFC(classes, rate, amp_dtype)
        nn.init.normal_(self.head.weight, std=0.01)
        groups = [{"params": self.backbone.parameters()}, {"params": self.head.parameters()}]
        self.optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=5e-4)
        self.scaler = torch.amp.GradScaler(device.type, growth_interval=100, enabled=self.fp16)

    def __call__(self, images: Tensor, labels: Tensor) -> float:
        loss = self.head(self.backbone(images), labels)
        shown = loss.clone()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.backbone.parameters(), 5)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        loss = shown.item()
        if not math.isfinite(loss):
            raise RuntimeError(f"the plain loop's loss is {loss}")
        return loss
