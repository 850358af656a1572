"""DeepCluster V2: prediction of clusters found in a memory of the last epoch's features.

The branch's memory and clusters are over the twin dictionary: a sample is a patch, whose first
view is its own and whose second is its twin's, so that both are assigned the patch's cluster.
Like the method itself the branch has no clusters, hence no loss but NaN and no gradient but zero,
in its first epoch; a patch that was not drawn in one epoch has no cluster in the next.
"""

from typing import Any

from solo_infoaug.errors import ConfigError
from solo_infoaug.twin.spec import MethodSpec


class DictionaryMemory:
    """The branch's memory counts patches of the dictionary, not images of the run's data set."""

    sampler: Any
    kmeans: Any
    local_memory_index: Any
    num_prototypes: Any

    def on_train_start(self) -> None:
        """Size the memory by the dictionary; refuse more prototypes than an epoch has pairs."""
        super().on_train_start()  # type: ignore[misc]
        self.dataset_size = self.kmeans.dataset_size = len(self.sampler.dictionary)
        memory, most = len(self.local_memory_index), max(self.num_prototypes)
        if memory < most:
            raise ConfigError(
                f"method_kwargs.num_prototypes: expected at most {memory}, the twin pairs that a "
                f"process draws in an epoch, got {most}; use fewer prototypes or a greater "
                "infoaug.batch_size"
            )


SPEC = MethodSpec(
    title="DeepCluster V2",
    paper="https://arxiv.org/abs/2006.09882",
    positive="patch and twin both predict the cluster of the patch, found in a memory of patches",
    heads=("projector", "prototypes"),
    state=("local_memory_index", "local_memory_embeddings"),
    hooks=("on_train_start", "on_train_epoch_start"),
    branch=DictionaryMemory,
)
