"""A task gives sums and counts, and never a mean."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.models.config import ModelConfig
from shoal.tasks.base import LossSum, Ratio
from shoal.tasks.cross_entropy import cross_entropy_sum
from shoal.tasks.language_model import LanguageModel

torch.set_num_threads(1)  # a second thread costs more than it brings at these sizes

VOCAB, LENGTH = 50, 64


class Windows:
    """Hand-made samples: sample i has `valid[i]` targets."""

    sequence_length = LENGTH

    def __init__(self, valid):
        self.valid = valid

    def __len__(self):
        return len(self.valid)

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        stream = torch.randint(VOCAB, (LENGTH + 1,), generator=generator)
        targets = stream[1:].clone()
        targets[self.valid[index] :] = -100
        segments = (torch.arange(LENGTH) >= 40).long() if index % 2 else torch.zeros(LENGTH).long()
        return {"tokens": stream[:-1], "targets": targets, "segments": segments}


def task_on(valid, **fields):
    data = SimpleNamespace(
        train=Windows(valid),
        held_out=Windows(valid[:1]),
        tokenizer=SimpleNamespace(vocab_size=VOCAB),
    )
    return LanguageModel(ModelConfig(**({"depth": 1, "width": 32} | fields)), data)


def batch_of(task, indices):
    samples = [task.samples("train")[index] for index in indices]
    return torch.utils.data.default_collate(samples)


def confident(task):
    """A model whose losses differ from token to token, as a trained one's do."""
    torch.manual_seed(0)
    model = task.build_model().double()
    with torch.no_grad():
        model.norm.weight.mul_(40)
    return model


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_split_of_a_ragged_batch_adds_up_to_the_whole(data):
    valid = data.draw(st.lists(st.integers(1, LENGTH), min_size=2, max_size=8))
    task = task_on(valid)
    model = confident(task)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(valid) - 1))))
    bounds = [0, *cuts, len(valid)]

    def accumulated(groups):
        model.zero_grad()
        total, count = 0.0, 0
        for group in groups:
            loss = task.loss(model, batch_of(task, group))
            loss.total.backward()
            total, count = total + loss.total.item(), count + loss.count
        return total, count, [parameter.grad / count for parameter in model.parameters()]

    whole = accumulated([range(len(valid))])
    split = accumulated([range(a, b) for a, b in pairwise(bounds)])
    assert split[1] == whole[1] == sum(valid)
    assert split[0] == pytest.approx(whole[0], rel=1e-6)
    for got, expected in zip(split[2], whole[2], strict=True):
        torch.testing.assert_close(
            got, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max())
        )


def test_the_mean_of_means_is_another_number():
    task = task_on([1, 64, 2, 50, 3, 64])
    model = confident(task)
    with torch.no_grad():
        parts = [task.loss(model, batch_of(task, [index])) for index in range(6)]
    exact = sum(part.total.item() for part in parts) / sum(part.count for part in parts)
    mean_of_means = sum(part.total.item() / part.count for part in parts) / 6
    assert abs(mean_of_means - exact) > 0.01 * exact


def test_loss_is_a_scalar_sum_with_a_plain_count():
    task = task_on([3, 5])
    loss = task.loss(task.build_model(), batch_of(task, [0, 1]))
    assert isinstance(loss, LossSum)
    assert loss.total.shape == ()
    assert type(loss.count) is int
    assert loss.count == 8
    total, count = loss
    assert (total, count) == (loss.total, 8)


def test_a_batch_without_targets_adds_nothing():
    task = task_on([0])
    model = task.build_model()
    loss = task.loss(model, batch_of(task, [0]))
    loss.total.backward()
    assert (loss.total.item(), loss.count) == (0.0, 0)
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_metrics_are_ratios_without_gradients():
    task = task_on([10, 20])
    model = task.build_model()
    batch = batch_of(task, [0, 1])
    metrics = task.metrics(model, batch)
    assert set(metrics) == {"loss", "accuracy"}
    loss = task.loss(model, batch)
    assert metrics["loss"] == Ratio(pytest.approx(loss.total.item()), 30)
    guesses = model(batch["tokens"], batch["segments"]).argmax(-1)
    assert metrics["accuracy"] == Ratio(int((guesses == batch["targets"]).sum()), 30)
    assert all(type(number) in (int, float) for ratio in metrics.values() for number in ratio)


def test_the_split_chooses_the_samples():
    task = task_on([1, 2, 3])
    assert (len(task.samples("train")), len(task.samples("held_out"))) == (3, 1)


def test_the_loss_does_not_cross_documents():
    task = task_on([64, 64])
    model = confident(task)
    batch = batch_of(task, [1])  # documents: 40 tokens, then 24
    changed = batch | {"tokens": batch["tokens"].clone()}
    changed["tokens"][0, :40] = 0
    of_second = {"targets": batch["targets"].clone()}
    of_second["targets"][0, :40] = -100
    with torch.no_grad():
        assert torch.equal(
            task.loss(model, batch | of_second).total, task.loss(model, changed | of_second).total
        )


def test_cross_entropy_equals_torchs_own_with_its_gradient():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(VOCAB, (40,), generator=generator)
    targets[::3] = -100
    mine, theirs = (
        torch.randn(40, VOCAB, generator=generator.manual_seed(1)).mul_(5).requires_grad_()
        for _ in range(2)
    )
    total = cross_entropy_sum(mine, targets)
    expected = F.cross_entropy(theirs, targets, ignore_index=-100, reduction="sum")
    (total * 3).backward()
    (expected * 3).backward()
    assert torch.equal(total, expected)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    assert not mine.grad[::3].any()


def test_the_gradient_of_cross_entropy_is_that_of_finite_differences():
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy_sum(x, torch.tensor([0, -100, 6, 3])), (logits,)
    )


def test_under_autocast_the_sum_is_fp32():
    task = task_on([64, 64])
    model = task.build_model()
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.loss(model, batch_of(task, [0, 1]))
    assert loss.total.dtype == torch.float32
    loss.total.backward()
    exact = task.loss(model, batch_of(task, [0, 1])).total
    assert loss.total.item() == pytest.approx(exact.item(), rel=1e-3)


def test_a_few_steps_learn_a_batch_by_heart():
    task = task_on([64, 64])
    torch.manual_seed(0)
    model = task.build_model()
    batch = batch_of(task, [0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        total, count = task.loss(model, batch)
        (total / count).backward()
        optimizer.step()
    hits, targets = task.metrics(model, batch)["accuracy"]
    assert hits / targets > 0.95


@pytest.mark.parametrize(
    ("tokens", "positions", "words"),
    [
        (20, 64, "knows 20 tokens, but the data's tokenizer has 50"),
        (50, 32, "data.sequence_length is 64, but the model in .* holds at most 32 tokens"),
    ],
)
def test_a_model_that_the_data_does_not_fit_is_refused(tokens, positions, words, tmp_path):
    import transformers

    config = transformers.GPT2Config(
        vocab_size=tokens, n_embd=8, n_layer=1, n_head=1, n_positions=positions
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    task = task_on([64])
    task.model_config = ModelConfig(path=str(tmp_path))
    with pytest.raises(ShoalError, match=words):
        task.build_model()
