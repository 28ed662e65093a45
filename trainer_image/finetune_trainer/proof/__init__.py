"""The proof: for every row that is trained on, which tokens are learnt and which are masked, asserted against the text itself."""

from finetune_trainer.proof.prover import Prover, Seen

__all__ = ["Prover", "Seen"]
