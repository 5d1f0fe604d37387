"""What can be trained and pruned: a file with the settings of each task."""

from experiments.tasks import (
    digits,
    lenet5_fashion,
    lenet5_mnist,
    lenet300_mnist,
    resnet32_cifar10,
    transformer_multi30k,
    transformer_toy,
)

IMAGE_TASKS = (digits, lenet300_mnist, lenet5_mnist, lenet5_fashion, resnet32_cifar10)
TASKS = (*IMAGE_TASKS, transformer_toy, transformer_multi30k)
DEFAULTS = {task.CONFIG.experiment: task.CONFIG for task in TASKS}
