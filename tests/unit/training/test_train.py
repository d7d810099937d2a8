"""What decides trained heads, and what does not."""

from adadecode.settings import TrainConfig
from adadecode.training.train import DECISIVE

# In the fingerprint by another name: the model's hash, the dtypes, the exits in use, the content of the outputs.
KNOWN_OTHERWISE = {
    *("model", "revision", "dtype", "exits", "ahead"),
    *("task", "data_file", "prompt_field", "offset", "limit", "max_new_tokens", "kernels"),
    *("num_shots", "shots_file", "system_prompt", "shuffle_seed"),
}
# Where things are and who does them; the outputs are the same parts cut elsewhere.
DECIDES_NOTHING = {"outputs", "part_prompts", "batch_prompts", "store_mb", "workers", "address", "threads"}
DECIDES_NOTHING |= {"label_selector", "gpus_per_worker"}


def test_every_setting_of_a_training_decides_the_heads_or_is_known_not_to():
    groups = (DECISIVE, KNOWN_OTHERWISE, DECIDES_NOTHING)
    assert sum(map(len, groups)) == len(set().union(*groups)), "each setting stands once"
    assert set().union(*groups) == set(TrainConfig.model_fields)
