"""A transformer that translates Multi30k, descriptions of pictures, to German.

python -m experiments transformer-multi30k --data-dir DATA
"""

from experiments.text.settings import TextConfig

CONFIG = TextConfig(
    experiment="transformer-multi30k",
    dataset="multi30k",
    network="transformer",
    vocabulary_size=8_000,
    max_source=52,
    max_target=52,
    dropout=0.3,
    b1=0.85,
    b2=0.997,
    strength=1e-5,
    scale=1.0,
    fraction=0.1,
    bound=1.0,
    relative_bound=True,
    interval=226,
    batch_size=64,
    dense_epochs=30,
    dense_learning_rate=1e-3,
    warmup_steps=1000,
    learning_rate=5e-4,
    epochs=20,
    finetune_epochs=8,
    finetune_learning_rate=5e-4,
    finetune_schedule="cosine",
)
