"""Sparse networks with Optax: shrink irrelevant weights, then prune them."""

from sparse_optax._amounts import cubic_sparsity as cubic_sparsity
from sparse_optax._bcoo import from_bcoo as from_bcoo, to_bcoo as to_bcoo
from sparse_optax._compaction.compact import compact as compact
from sparse_optax._compaction.compacted import Compacted as Compacted
from sparse_optax._compaction.find_groups import channel_groups as channel_groups
from sparse_optax._compaction.groups import (
    ChannelGroup as ChannelGroup,
    ChannelGroups as ChannelGroups,
)
from sparse_optax._criteria import (
    magnitude as magnitude,
    per_leaf as per_leaf,
    random as random,
    relevance as relevance,
    saliency as saliency,
)
from sparse_optax._decays import (
    add_l1_decay as add_l1_decay,
    add_lobster_decay as add_lobster_decay,
)
from sparse_optax._find_states import get_masks as get_masks
from sparse_optax._hide_pruned import (
    HidePrunedState as HidePrunedState,
    hide_pruned as hide_pruned,
)
from sparse_optax._iterative import (
    PruningRound as PruningRound,
    iterative_pruning as iterative_pruning,
)
from sparse_optax._leaves import matrices_only as matrices_only
from sparse_optax._masks import apply_masks as apply_masks, sparsity as sparsity
from sparse_optax._one_shot import (
    one_shot as one_shot,
    straight_through as straight_through,
)
from sparse_optax._prune_state import (
    PruneState as PruneState,
    PruningRules as PruningRules,
)
from sparse_optax._pruning import (
    prune_by as prune_by,
    prune_by_magnitude as prune_by_magnitude,
    prune_to_sparsity as prune_to_sparsity,
)
from sparse_optax._pruning_loop import (
    IterativePruningState as IterativePruningState,
    PruningLoop as PruningLoop,
    pruning_loop as pruning_loop,
)
from sparse_optax._relevance import (
    add_relevance_decay as add_relevance_decay,
    irrelevance as irrelevance,
    is_relevant as is_relevant,
    relevance_penalty as relevance_penalty,
)
from sparse_optax._relevance_pruning import relevance_pruning as relevance_pruning
from sparse_optax._report import (
    LeafSparsity as LeafSparsity,
    SparsityReport as SparsityReport,
    sparsity_report as sparsity_report,
)
from sparse_optax._restart import StepsSincePruning as StepsSincePruning
from sparse_optax._selection import Units as Units
from sparse_optax._sparse_files import (
    load_sparse as load_sparse,
    save_sparse as save_sparse,
)
from sparse_optax._sparse_training import sparse_training as sparse_training
from sparse_optax._states import (
    check_sparsity as check_sparsity,
    masks_from_zeros as masks_from_zeros,
    prune as prune,
    set_masks as set_masks,
)
from sparse_optax._structures import (
    NM as NM,
    Block as Block,
    Channel as Channel,
    LeafStructure as LeafStructure,
    Structure as Structure,
    Unstructured as Unstructured,
)

__version__ = "0.1.0"
