"""The networks and what is exported of them say the same; a margin never shrinks as adapters come."""

from __future__ import annotations

import numpy as np
import pytest
from support.small_dataset import model_of, random_tensors, small_examples

from loraplan.profiles import load_profile
from surrogate import features, kernel
from surrogate.examples import base_figures

torch = pytest.importorskip("torch")
network = pytest.importorskip("surrogate.network")

torch.set_num_threads(1)  # all batches are tiny


@pytest.mark.parametrize("seed", [0, 1])
def test_the_exported_model_says_what_the_networks_say(seed: int) -> None:
    examples, tensors = small_examples(), random_tensors(seed)
    networks = network.Surrogate(examples)
    given = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    assert networks.load_state_dict(given, strict=False).missing_keys == ["margin.scale"]
    with torch.no_grad():
        said = networks(network.tensors_of(examples), temperature=0.0)
    judged = model_of(tensors).judge_examples(examples)
    np.testing.assert_allclose(judged.log_share, said["log_share"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(judged.score, said["score"], rtol=1e-4, atol=2e-3)  # 20 times the log of the share
    logs = said["quantiles"].numpy().transpose(0, 2, 1) + base_figures(examples.inputs, examples.server)[:, None]
    figures = np.exp(logs)
    for target in (0, 3):  # fractions
        figures[:, :, target] = np.minimum(figures[:, :, target], 1.0)
    np.testing.assert_allclose(judged.figures, figures, rtol=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_load_with_one_adapter_more_never_takes_a_smaller_share(seed: int) -> None:
    """Neither for what it asks, nor for the rank to which it raises the server's."""
    draws = np.random.default_rng(seed)
    profile = load_profile("h100-64gb/llama-3.1-8b")
    size, slots = 200, int(draws.choice([8, 32, 96]))
    traffic = np.zeros(size, dtype=kernel.TRAFFIC)
    traffic["rate"] = np.exp(draws.uniform(np.log(1e-4), np.log(2.0), size))
    for name, least, most in (("tokens_in", 1, 2000), ("tokens_out", 1, 500)):
        traffic[name] = np.exp(draws.uniform(np.log(least), np.log(most), size))
    traffic["kv"] = traffic["tokens_in"] + traffic["tokens_out"] / 2
    for name, of in (("kv_root", "kv"), ("kv_most", "kv"), ("in_squared", "tokens_in"), ("out_squared", "tokens_out")):
        power = 2 if name.endswith("squared") else 1
        traffic[name] = traffic[of] ** power * draws.uniform(1.0, 3.0, size)
    ranks = np.sort(draws.choice([8, 16, 32, 64], size))
    table = np.zeros((size, kernel.EMBEDDING), dtype=np.int64)
    kernel.fixed_embeddings(traffic, 1e-3 * profile.step_ms.base, table)
    ends = np.cumsum(np.arange(1, size + 1))
    members = np.concatenate([np.arange(count) for count in range(1, size + 1)])
    sums = np.zeros((size, kernel.EMBEDDING))
    adapters = np.zeros((1, size), dtype=kernel.ADAPTER)
    totals = np.zeros(size, dtype=kernel.ADAPTER)
    kernel.add_up(table[None], adapters, np.zeros(size, dtype=np.int64), members, ends, sums, totals)
    model = model_of(random_tensors(seed))
    terms = np.array([features.server(profile, slots, int(rank)) for rank in ranks])
    context = np.array([features.context(profile, slots, 1.0)] * size)
    score = model.judge(sums, model.servers(terms, context), np.arange(size)).score
    assert np.all(np.diff(score) >= 0.0)
    assert score[-1] > score[0]


def test_all_tensors_are_where_the_networks_are() -> None:
    """On a GPU no constant may be left in the CPU's memory; torch's "meta" is a device that every machine has."""
    networks = network.Surrogate(small_examples()).to("meta")
    batch = {name: tensor.to("meta") for name, tensor in network.tensors_of(small_examples()).items()}
    assert all(value.device.type == "meta" for value in networks(batch, 0.1).values())
