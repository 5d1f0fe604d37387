"""The experiments: `python -m experiments --help` lists them.

- `tasks`: the settings of each task, one file each, such as `tasks/digits.py`;
- `running`: a run from its first round to its summary (`run.py`), checkpoints, sweeps;
- `training`: what happens in a run: its phases (`phases.py`), the training loop
  (`loop.py`; `text_loop.py` for text), optimizers and regularizers;
- `networks`, `data`: what is trained, and on what;
- `comparing`: the relevance study, and the comparison with other methods;
- `cost`: time, memory, files and latency;
- `pages`: the pages of `docs/results`, from the rows in `results`.
"""
