"""A transformer that writes the assistant's answers in Taskmaster dialogues.

An hour on one core.
"""

from experiments.config import DialogueConfig

CONFIG = DialogueConfig(
    experiment="transformer-taskmaster",
    dataset="taskmaster",
    network="transformer",
    vocabulary_size=4_000,
    max_source=254,
    max_target=128,
    beam=6,
    length_penalty=1.2,
    b1=0.85,
    b2=0.997,
    strength=1e-5,
    fraction=0.1,
    bound=0.5,
    relative_bound=True,
    interval=110,
    batch_size=50,
    warmup_steps=400,
    learning_rate=5e-4,
    epochs=20,
    finetune_epochs=5,
    finetune_learning_rate=5e-4,
    finetune_schedule="cosine",
)
