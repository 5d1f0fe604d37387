"""The same in PyTorch, for comparison if it is installed.

The regularized step trains LeNet-5 with two backward passes, like the paper's authors:
one for the gradient, which determines relevance, and one for the loss with the penalty.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.data.images import Split


def comparable() -> bool:
    """Whether PyTorch is installed, and JAX runs on CPU as PyTorch does."""
    has_torch = importlib.util.find_spec("torch") is not None
    return has_torch and jax.default_backend() == "cpu"


def make_train(
    data: Split, batch_size: int, num_steps: int, strength: float | None
) -> Callable[[], Any]:
    """Returns the function that makes `num_steps` updates of Adam.

    Without a strength there is no penalty, and one backward pass.
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

    def train() -> Any:
        order = torch.randperm(len(labels))
        for batch in order[: num_steps * batch_size].split(batch_size):
            logits = network(images[batch].float() / 255)
            loss = nn.functional.cross_entropy(logits, labels[batch])
            if strength is not None:
                grads = torch.autograd.grad(loss, weights, retain_graph=True)
                loss = loss + strength * sum(
                    (torch.exp(-g.abs()) * w.square()).sum()
                    for g, w in zip(grads, weights, strict=True)
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return weights

    return train


def make_prune(matrices: list[jax.Array], fraction: float) -> Callable[[], Any]:
    """Returns the function that prunes all matrices globally by magnitude."""
    torch: Any = importlib.import_module("torch")
    pruning: Any = importlib.import_module("torch.nn.utils.prune")
    weights = [torch.nn.Parameter(torch.from_numpy(np.array(w))) for w in matrices]

    def prune() -> Any:
        modules = [torch.nn.Module() for _ in weights]
        for module, weight in zip(modules, weights, strict=True):
            module.weight = weight
        pruning.global_unstructured(
            [(module, "weight") for module in modules],
            pruning_method=pruning.L1Unstructured,
            amount=fraction,
        )
        return [module.weight for module in modules]

    return prune
