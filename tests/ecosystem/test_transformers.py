"""transformers: a Trainer that trains and evaluates a tiny model made from a configuration."""

from __future__ import annotations

from pathlib import Path

from tests.ecosystem.watching import Watch

FRAMEWORK = "transformers"

JOB = """
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    from transformers import TrainerCallback, set_seed


    class Sentences(torch.utils.data.Dataset):
        def __init__(self, size):
            self.size = size

        def __len__(self):
            return self.size

        def __getitem__(self, index):
            words = (torch.arange(8) * index) % 60
            mask = torch.ones(8, dtype=torch.long)
            return dict(input_ids=words, attention_mask=mask, labels=torch.tensor(index % 2))


    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5 + 2:
                tell(step=state.global_step)


    def main():
        set_seed(7)
        size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        config = BertConfig(
            vocab_size=64, intermediate_size=16, max_position_embeddings=16, **size
        )
        arguments = TrainingArguments(
            output_dir="out",
            num_train_epochs=2,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=4,
            dataloader_num_workers=2,
            eval_strategy="epoch",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(
            BertForSequenceClassification(config),
            arguments,
            train_dataset=Sentences(20),
            eval_dataset=Sentences(12),
            callbacks=[Stop()],
        )
        trainer.train()
        history = trainer.state.log_history
        tell(
            losses=[log["loss"] for log in history if "loss" in log],
            eval_losses=[log["eval_loss"] for log in history if "eval_loss" in log],
        )


    if __name__ == "__main__":
        main()
"""

OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def test_train_and_eval_of_a_trainer_are_counted_apart(watch: Watch, tmp_path: Path) -> None:
    middle, end = watch(JOB, env={**OFFLINE, "HF_HOME": str(tmp_path)})
    assert len(end.facts["losses"]) == 10
    assert middle.names() == end.names() == ["eval_dataloader", "train_dataloader"]
    train, evaluation = middle.loader("train_dataloader"), middle.loader("eval_dataloader")
    assert (train.epochs, train.batches) == (2, 5 + 2 + 1)  # one ahead: Accelerate's loader
    assert [worker.up for worker in train.workers] == [True, True]
    assert (evaluation.epochs, evaluation.batches) == (1, 3)
    train, evaluation = end.loader("train_dataloader"), end.loader("eval_dataloader")
    assert (train.epochs, train.batches, train.samples) == (2, 10, 40)
    assert (evaluation.epochs, evaluation.batches, evaluation.samples) == (2, 6, 24)
    assert train.config["read_ahead"] == evaluation.config["read_ahead"] == "1"
    assert train.worker_starts == train.worker_exits["normal"] == 4
