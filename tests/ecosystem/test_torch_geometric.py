"""torch_geometric: batches of graphs, and neighbourhoods around nodes."""

from __future__ import annotations

import pytest

from tests.ecosystem.watching import Watch

FRAMEWORK = "torch_geometric"

GRAPHS = """
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader


    def graph(number):
        nodes = 3 + number % 4
        ring = torch.stack([torch.arange(nodes), torch.arange(nodes).roll(1)])
        return Data(x=torch.full((nodes, 2), float(number)), edge_index=ring)


    def make():
        torch.manual_seed(7)
        graphs = [graph(number) for number in range(22)]
        return DataLoader(graphs, batch_size=4, shuffle=True, num_workers={workers})


    def numbers(batch):
        return batch.x, batch.edge_index, batch.batch
"""
"""22 graphs, 4 a batch: 6 batches with 22 samples."""

NODES = """
    from torch_geometric.data import Data
    from torch_geometric.loader import NodeLoader
    from torch_geometric.sampler import BaseSampler, SamplerOutput


    class Ring(BaseSampler):
        '''Samples a node of a ring and its two neighbours, as NeighborSampler would.'''

        def sample_from_nodes(self, inputs):
            seeds = inputs.node
            around = torch.cat([(seeds - 1) % 22, (seeds + 1) % 22])
            nodes = torch.cat([seeds, around[~torch.isin(around, seeds)].unique()])
            place = torch.full((22,), -1)
            place[nodes] = torch.arange(len(nodes))
            row = place[torch.cat([(seeds - 1) % 22, (seeds + 1) % 22])]
            col = place[seeds].repeat(2)
            return SamplerOutput(node=nodes, row=row, col=col, edge=None,
                                 metadata=(inputs.input_id, inputs.time))

        def sample_from_edges(self, inputs, neg_sampling=None):
            raise NotImplementedError


    def make():
        torch.manual_seed(7)
        ring = torch.stack([torch.arange(22), torch.arange(22).roll(1)])
        data = Data(x=torch.arange(22.0).unsqueeze(1), edge_index=ring)
        return NodeLoader(data, Ring(), batch_size=4, shuffle=True, num_workers={workers},
                          filter_per_worker={filter_per_worker})


    def numbers(batch):
        return batch.x, batch.edge_index, batch.n_id
"""

MAIN = """
    def main():
        train_loader = make()
        digest, batches = Digest(), 0
        for epoch in range(2):
            for number, batch in enumerate(train_loader):
                digest.add(*numbers(batch))
                batches += 1
                if epoch == 1 and number == 1:
                    tell(batches=batches)
        tell(digest=str(digest), batches=batches)


    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize(
    ("job", "options", "ways"),
    [
        (GRAPHS, {"workers": 2}, ("instrument", "run")),
        (GRAPHS, {"workers": 0}, ("run",)),
        (NODES, {"workers": 2, "filter_per_worker": False}, ("instrument",)),
        (NODES, {"workers": 2, "filter_per_worker": True}, ("run",)),
    ],
    ids=["graphs, 2 workers", "graphs, 0 workers", "nodes, filtered in rank", "nodes, in worker"],
)
def test_graphs_and_nodes_are_the_samples(
    job: str, options: dict[str, object], ways: tuple[str, ...], watch: Watch
) -> None:
    middle, end = watch(job.format(**options) + MAIN, ways=ways)
    assert middle.names() == end.names() == ["train_loader"]
    train = middle.loader("train_loader")
    assert (train.epochs, train.batches) == (2, 6 + 2)
    assert [worker.up for worker in train.workers] == [True] * len(train.workers)
    assert len(train.workers) == options["workers"]
    train = end.loader("train_loader")
    assert (train.epochs, train.batches, train.samples) == (2, 12, 44)
    assert train.worker_starts == train.worker_exits["normal"] == 2 * len(train.workers)
