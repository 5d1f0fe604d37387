"""What can be trained and pruned: one file for the settings of each task."""

from experiments.config import Config, ImageConfig
from experiments.tasks import (
    digits,
    lenet5_fashion,
    lenet5_mnist,
    lenet300_mnist,
    resnet20_cifar10,
    transformer_multi30k,
    transformer_taskmaster,
    transformer_toy,
    transformer_wmt14,
)

MODULES = (
    *(digits, lenet300_mnist, lenet5_mnist, lenet5_fashion, resnet20_cifar10),
    *(transformer_toy, transformer_multi30k),
    *(transformer_taskmaster, transformer_wmt14),
)
TASKS: dict[str, Config] = {
    module.CONFIG.experiment: module.CONFIG for module in MODULES
}
IMAGE_TASKS: dict[str, ImageConfig] = {
    name: config for name, config in TASKS.items() if isinstance(config, ImageConfig)
}
HELP = {module.CONFIG.experiment: module.__doc__ or "" for module in MODULES}
