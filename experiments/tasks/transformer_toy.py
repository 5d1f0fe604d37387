"""A small transformer that reverses words.

Needs no data; three minutes on one core.
"""

from experiments.config import TextConfig

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
    dropout=0.0,
    label_smoothing=0.0,
    b1=0.85,
    b2=0.997,
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
