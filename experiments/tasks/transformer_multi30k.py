"""A transformer that translates image captions of Multi30k to German.

More than an hour on one core.
"""

from experiments.config import TextConfig

CONFIG = TextConfig(
    experiment="transformer-multi30k",
    dataset="multi30k",
    network="transformer",
    dropout=0.3,
    b1=0.85,
    b2=0.997,
    strength=1e-5,
    fraction=0.12,
    bound=8.0,
    relative_bound=True,
    interval=226,
    batch_size=64,
    dense_epochs=30,
    warmup_steps=400,
    epochs=7,
    finetune_epochs=10,
    finetune_learning_rate=1e-3,
    finetune_schedule="cosine",
)
