"""LeNet-5 (431,080 parameters) on MNIST.

python -m experiments lenet5-mnist --data-dir DATA
"""

from experiments.config import Config

CONFIG = Config(
    experiment="lenet5-mnist",
    dataset="mnist",
    network="lenet5",
    strength=1e-4,
    scale=1.0,
    fraction=0.06,
    bound=0.99,
    interval=107,
    epochs=100,
    batch_size=256,
    learning_rate=2e-3,
    schedule="cosine",
    finetune_epochs=20,
    finetune_learning_rate=1e-3,
    finetune_schedule="cosine",
)
