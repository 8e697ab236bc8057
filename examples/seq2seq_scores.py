"""Scores of what `train_seq2seq.py` writes, in the order of the data."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sacrebleu import BLEU, CHRF
from transformers import EvalPrediction, PreTrainedTokenizerBase, Seq2SeqTrainer

logger = logging.getLogger("train_seq2seq")


def check_bleu_tokenizer(name: str) -> None:
    """Raises ValueError for one that sacrebleu does not have, or not without a package that is not here."""
    if name not in BLEU.TOKENIZERS:
        raise ValueError(f"--bleu_tokenize {name}: choose from {', '.join(BLEU.TOKENIZERS)}.")
    try:
        BLEU(tokenize=name)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"--bleu_tokenize {name}: {' '.join(str(error).split())}") from error


class Scorer:
    """BLEU, chrF and exact match, in percent, against the texts of the file rather than what decodes from labels."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoded: Dataset, bleu_tokenize: str) -> None:
        self.tokenizer, self.rows, self.references = tokenizer, list(encoded["row"]), list(encoded["target"])
        self.metrics = BLEU(tokenize=bleu_tokenize, references=[self.references]), CHRF(references=[self.references])

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        texts = self.decode(prediction.predictions)
        exact = sum(text == reference for text, reference in zip(texts, self.references, strict=True)) / len(texts)
        bleu, chrf = (metric.corpus_score(texts, None).score for metric in self.metrics)
        return {"bleu": bleu, "chrf": chrf, "exact_match": 100 * exact}

    def decode(self, ids: Any) -> list[str]:
        ids = ids[: len(self.rows)]  # processes repeat rows to fill their last batch
        ids = np.where(ids < 0, self.tokenizer.pad_token_id, ids)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def write(self, path: Path, ids: Any) -> None:
        """A text a line, in the order of the file; line ends within a text are written as \\n and \\r."""
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for _, text in sorted(zip(self.rows, self.decode(ids), strict=True)):
                file.write(text.replace("\n", "\\n").replace("\r", "\\r") + "\n")

    def report(self, trainer: Seq2SeqTrainer, split: str, results: dict[str, Any]) -> None:
        """Print and save scores, with what they mean."""
        signatures = {f"{split}_{type(m).__name__.lower()}_signature": str(m.get_signature()) for m in self.metrics}
        trainer.log_metrics(split, results)
        logger.info("\n".join(f"{name}: {signature}" for name, signature in signatures.items()))
        trainer.save_metrics(split, results | signatures)
