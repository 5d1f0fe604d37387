"""What can be trained and pruned: a file with the settings of each task."""

from experiments.tasks import (
    digits,
    lenet5_fashion,
    lenet5_mnist,
    lenet300_mnist,
    resnet32_cifar10,
    transformer_multi30k,
    transformer_taskmaster,
    transformer_toy,
    transformer_wmt14,
)

IMAGE_TASKS = (digits, lenet300_mnist, lenet5_mnist, lenet5_fashion, resnet32_cifar10)
TEXT_TASKS = (
    transformer_toy,
    transformer_multi30k,
    transformer_taskmaster,
    transformer_wmt14,
)
TASKS = *IMAGE_TASKS, *TEXT_TASKS
DEFAULTS = {task.CONFIG.experiment: task.CONFIG for task in TASKS}
