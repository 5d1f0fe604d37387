"""The regularized step of LeNet-5 in PyTorch, to compare with where it is installed.

With two backward passes, as the paper's authors have it: one for the gradient, by which
relevance is judged, and one for the loss together with the penalty.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.data import Split


def has_torch() -> bool:
    """Whether PyTorch, which no other part of this package needs, is installed."""
    return importlib.util.find_spec("torch") is not None


def make_train(
    data: Split, *, batch_size: int, num_steps: int, strength: float, scale: float
) -> Callable[[], Any]:
    """Returns the function that goes on by `num_steps` updates of Adam.

    It goes through the data in a random order, and returns the weights.
    """
    torch: Any = importlib.import_module("torch")
    nn = torch.nn
    network = nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )
    weights = list(network.parameters())
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    images = torch.from_numpy(np.moveaxis(data.images, -1, 1).copy())
    labels = torch.from_numpy(data.labels.astype(np.int64))

    def step(batch: Any) -> None:
        logits = network(images[batch].float() / 255)
        loss = nn.functional.cross_entropy(logits, labels[batch])
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        penalty = sum(
            (torch.exp(-g.abs() / scale) * w.square()).sum()
            for g, w in zip(gradients, weights, strict=True)
        )
        optimizer.zero_grad()
        (loss + strength * penalty).backward()
        optimizer.step()

    def train() -> Any:
        order = torch.randperm(len(labels))
        for batch in order[: num_steps * batch_size].split(batch_size):
            step(batch)
        return weights

    return train
