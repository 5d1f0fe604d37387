"""A small transformer that writes words backwards: the method on sequences in minutes.

python -m experiments transformer-toy
"""

from experiments.text.settings import TextConfig

CONFIG = TextConfig(
    experiment="transformer-toy",
    dataset="toy",
    network="transformer",
    vocabulary_size=15,
    max_source=9,
    max_target=10,
    num_layers=1,
    features=64,
    hidden=128,
    heads=4,
    dropout=0.0,
    label_smoothing=0.0,
    beam=4,
    b1=0.85,
    b2=0.997,
    strength=1e-4,
    scale=1.0,
    fraction=0.1,
    bound=0.005,
    relative_bound=True,
    interval=156,
    batch_size=128,
    dense_epochs=10,
    dense_learning_rate=3e-3,
    warmup_steps=100,
    learning_rate=2e-3,
    epochs=20,
    finetune_epochs=4,
    finetune_learning_rate=2e-3,
    finetune_schedule="cosine",
)
