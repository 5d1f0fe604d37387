"""What PyTorch takes for the same, to compare with where it is installed.

The regularized step is that of LeNet-5, with two backward passes as the paper's authors
have it: one for the gradient, by which relevance is judged, and one for the loss
together with the penalty. The prune is the one that comes with PyTorch.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.data import Split


def has_torch() -> bool:
    """Whether PyTorch, which no other part of this package needs, is installed."""
    return importlib.util.find_spec("torch") is not None


def make_train(
    data: Split,
    *,
    batch_size: int,
    num_steps: int,
    strength: float | None,
    scale: float = 1.0,
) -> Callable[[], Any]:
    """Returns the function that goes on by `num_steps` updates of Adam.

    It goes through the data in a random order, and returns the weights. Without
    strength the steps are plain, of one backward pass.
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

    def penalty(loss: Any) -> Any:
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        return sum(
            (torch.exp(-g.abs() / scale) * w.square()).sum()
            for g, w in zip(gradients, weights, strict=True)
        )

    def step(batch: Any) -> None:
        logits = network(images[batch].float() / 255)
        loss = nn.functional.cross_entropy(logits, labels[batch])
        if strength is not None:
            loss = loss + strength * penalty(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def train() -> Any:
        order = torch.randperm(len(labels))
        for batch in order[: num_steps * batch_size].split(batch_size):
            step(batch)
        return weights

    return train


def make_prune(matrices: list[jax.Array], fraction: float) -> Callable[[], Any]:
    """Returns the function that gives the matrices without their smallest weights."""
    torch: Any = importlib.import_module("torch")
    pruning: Any = importlib.import_module("torch.nn.utils.prune")
    weights = [torch.nn.Parameter(torch.from_numpy(np.array(w))) for w in matrices]

    def prune() -> Any:
        modules = []
        for weight in weights:
            modules.append(torch.nn.Module())
            modules[-1].weight = weight
        pruning.global_unstructured(
            [(module, "weight") for module in modules],
            pruning_method=pruning.L1Unstructured,
            amount=fraction,
        )
        return [module.weight for module in modules]

    return prune
