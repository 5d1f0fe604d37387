"""The base transformer that translates WMT14 English to German.

For accelerators, all of a host; not yet run in full.
"""

from experiments.config import TextConfig

CONFIG = TextConfig(
    experiment="transformer-wmt14",
    dataset="wmt14",
    network="transformer",
    vocabulary_size=32_000,
    joint_vocabulary=False,
    max_source=128,
    max_target=128,
    num_layers=6,
    features=512,
    hidden=2_048,
    heads=8,
    dropout=0.1,
    length_penalty=0.6,
    accumulation=3,
    data_parallel=True,
    bfloat16=True,
    b1=0.85,
    b2=0.997,
    strength=1e-5,
    fraction=0.1,
    bound=0.5,
    relative_bound=True,
    interval=2_000,
    checkpoint_every=1,
    batch_size=96,
    dense_epochs=10,
    dense_learning_rate=7e-4,
    warmup_steps=4_000,
    learning_rate=3e-4,
    epochs=10,
    finetune_epochs=2,
    finetune_schedule="cosine",
)
