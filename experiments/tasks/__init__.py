"""What can be trained and pruned: a file with the settings of each task."""

from experiments.tasks import (
    digits,
    lenet5_fashion,
    lenet5_mnist,
    lenet300_mnist,
    resnet32_cifar10,
)

TASKS = (digits, lenet300_mnist, lenet5_mnist, lenet5_fashion, resnet32_cifar10)
DEFAULTS = {task.CONFIG.experiment: task.CONFIG for task in TASKS}
