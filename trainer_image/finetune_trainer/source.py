from finetune_trainer.sources import DATA_FILES, HUB_UNREACHABLE, MODEL_FILES, fetch, local

__all__ = ["DATA_FILES", "HUB_UNREACHABLE", "MODEL_FILES", "fetch", "local"]
