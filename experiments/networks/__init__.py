"""The networks the experiments train: two LeNets, a ResNet, a small transformer."""

from experiments.networks.lenets import LeNet5, LeNet300
from experiments.networks.pixel_transformer import PixelTransformer
from experiments.networks.resnet import ResNet20

NETWORKS = {
    "lenet300": LeNet300,
    "lenet5": LeNet5,
    "resnet20": ResNet20,
    "pixel-transformer": PixelTransformer,
}
