"""webdataset: tar shards read by the workers of a WebLoader."""

from __future__ import annotations

from tests.ecosystem.watching import Watch

FRAMEWORK = "webdataset"

JOB = """
    import webdataset


    def main():
        for shard in range(2):
            with webdataset.TarWriter(f"numbers-{shard}.tar") as tar:
                for number in range(10 * shard, 10 * shard + 10):
                    tar.write(dict(__key__=f"{number:04d}", cls=number))

        data = webdataset.WebDataset("numbers-{0..1}.tar", shardshuffle=False)
        data = data.decode().to_tuple("cls").batched(4)
        train_loader = webdataset.WebLoader(data, batch_size=None, num_workers=2)
        mixed_loader = webdataset.WebLoader(data, batch_size=None, num_workers=2)
        mixed_loader = mixed_loader.unbatched().batched(5)
        digest, batches, mixed = Digest(), 0, 0
        for epoch in range(2):
            for number, (batch,) in enumerate(train_loader):
                digest.add(batch)
                batches += 1
                if epoch == 1 and number == 1:
                    tell(batches=batches)
        for batch, in mixed_loader:
            digest.add(batch)
            mixed += 1
        tell(digest=str(digest), batches=batches, mixed=mixed)


    if __name__ == "__main__":
        main()
"""


def test_the_batches_of_a_webloader_are_those_that_its_workers_send(watch: Watch) -> None:
    middle, end = watch(JOB)
    assert middle.names() == ["train_loader"]
    assert end.names() == ["mixed_loader", "train_loader"]
    train = middle.loader("train_loader")
    assert (train.epochs, train.batches) == (2, 6 + 2)
    assert [worker.up for worker in train.workers] == [True, True]
    train = end.loader("train_loader")
    # Each worker has a shard of 10: batches of 4, 4 and 2. With batch_size=None each is a sample.
    assert (train.epochs, train.batches, train.samples) == (2, 12, 12)
    mixed = end.loader("mixed_loader")
    assert end.facts["mixed"] == 4  # what the rank makes of 6 batches of 20 numbers
    assert (mixed.epochs, mixed.batches, mixed.samples) == (1, 6, 6)
