"""Evaluation protocols train what they say, on what they say, and leave the rest alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rotnet_fast.config import PretrainConfig
from rotnet_fast.data.datasets import Dataset, Split
from rotnet_fast.data.loader import Batch
from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.engine.schedule import stretched
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.protocols.classification import ObjectClassification, ObjectViews
from rotnet_fast.protocols.drivers import protocol_units
from rotnet_fast.protocols.evaluation import EvaluationSetup, Subject, first_of_each_class
from rotnet_fast.protocols.heads import HeadsOnBackbone, heads_task, use_batch_statistics
from rotnet_fast.protocols.knn import frozen_features
from rotnet_fast.protocols.result import Cell
from rotnet_fast.settings import Optimisation

CPU = torch.device("cpu")
SIDE = 8
PLACEMENTS = tuple((layer, head) for layer in ("conv1", "conv2") for head in ("nonlinear", "conv"))


def made_split(count: int, seed: int) -> Split:
    """Images of noise whose mean brightness tells the class, labels 0 to 3 in turn."""
    labels = torch.arange(count) % 4
    noise = torch.randint(0, 64, (count, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(seed))
    return Split((noise + 64 * labels[:, None, None, None]).to(torch.uint8), labels)


def trained_network() -> NetworkInNetwork:
    """A network whose running statistics have seen something."""
    torch.manual_seed(7)
    network = NetworkInNetwork(num_classes=4, blocks=3, width=0.05)
    network.train()(torch.randn(8, 3, SIDE, SIDE))
    return network


@pytest.fixture
def setup(tmp_path: Path) -> EvaluationSetup:
    return EvaluationSetup(
        pretrained=trained_network().state_dict(),
        config=PretrainConfig(blocks=3, width=0.05),
        in_channels=3,
        pad=1,
        flip_prob=0.5,
        dataset=Dataset("made", "made", ("a", "b", "c", "d"), made_split(40, 0), made_split(22, 1), "0" * 64),
        batch_size=16,
        images_per_class=None,
        seed=0,
        device=CPU,
        precision=resolve_precision("fp32", CPU),
        folder=tmp_path,
    )


def run(
    protocol: str,
    setup: EvaluationSetup,
    layers: tuple[str, ...] = ("conv1", "conv2"),
    heads: tuple[str, ...] = ("nonlinear", "conv"),
    epochs: int = 2,
) -> list[Cell]:
    """All rows of a protocol."""
    recipe = Optimisation(epochs=epochs, lr=0.05)
    units = protocol_units(layers, heads, recipe, setup.config.stretched(epochs))[protocol]
    return [cell for unit in units for cell in unit.cells(setup)]


def final_state(setup: EvaluationSetup, training: str) -> dict[str, torch.Tensor]:
    """Weights and buffers after a training of the setup."""
    _, state = checkpoint.load_newest(setup.folder / training)
    module: dict[str, torch.Tensor] = state["module"]
    return module


def part(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def test_training_heads_leaves_the_frozen_network_untouched(setup: EvaluationSetup) -> None:
    cells = run("frozen", setup)
    state = final_state(setup, "frozen")
    assert checkpoint.state_hash(part(state, "backbone.")) == checkpoint.state_hash(setup.pretrained)
    fresh = setup.with_heads(setup.pretrained_network(), PLACEMENTS, frozen=True)
    for name, before in fresh.heads.state_dict().items():
        assert not torch.equal(state[f"heads.{name}"], before), name
    assert [(c.method, c.layer, c.head) for c in cells] == [
        ("frozen", layer, head) for layer in ("conv1", "conv2") for head in ("nonlinear", "conv")
    ]


@pytest.mark.parametrize(("layer", "head"), [("conv1", "conv"), ("conv2", "nonlinear"), ("conv2", "conv")])
def test_heads_trained_together_equal_each_trained_alone(
    setup: EvaluationSetup, layer: str, head: str
) -> None:
    together = run("frozen", setup)
    alone = replace(setup, folder=setup.folder / "alone")
    (cell,) = run("frozen", alone, (layer,), (head,))
    assert cell in together
    prefix = f"heads.{layer}_{head}."
    expected = part(final_state(setup, "frozen"), prefix)
    assert checkpoint.state_hash(part(final_state(alone, "frozen"), prefix)) == checkpoint.state_hash(
        expected
    )


def test_frozen_network_stays_in_eval_mode_and_gets_no_gradients(setup: EvaluationSetup) -> None:
    module = setup.with_heads(setup.pretrained_network(), PLACEMENTS, frozen=True)
    views = setup.views()
    task = heads_task(module, views, Optimisation(epochs=1))
    task.begin_epoch(0)
    assert not any(m.training for m in module.backbone.modules())
    assert all(m.training for m in module.heads.modules())
    images, labels = task.views(first_images(views, 8))
    task.loss(task.forward(images), labels).loss.backward()
    assert all(p.grad is None for p in module.backbone.parameters())
    assert all(p.grad is not None for p in module.heads.parameters())


def test_each_kind_of_head_has_its_own_schedule(setup: EvaluationSetup) -> None:
    module = setup.with_heads(
        setup.pretrained_network(), [("conv2", "nonlinear"), ("conv2", "conv")], frozen=True
    )
    groups = heads_task(module, setup.views(), Optimisation()).parameter_groups()
    assert [(g.name, g.schedule.milestones) for g in groups] == [
        ("conv2_nonlinear", (20, 40, 45)),
        ("conv2_conv", (35, 70, 85)),
    ]
    groups = heads_task(module, setup.views(), Optimisation(milestones=(30, 60, 80))).parameter_groups()
    assert {g.schedule.milestones for g in groups} == {(30, 60, 80)}


def test_muon_trains_the_filters_of_conv_heads_and_of_a_network_that_is_fine_tuned(
    setup: EvaluationSetup,
) -> None:
    recipe = Optimisation(optimizer="muon", muon_lr=0.02, schedule="linear")
    placements = [("conv2", "nonlinear"), ("conv2", "conv")]
    frozen = setup.with_heads(setup.pretrained_network(), placements, frozen=True)
    groups = heads_task(frozen, setup.views(), recipe).parameter_groups()
    assert [(g.name, g.schedule.base_lr, g.is_orthogonalised) for g in groups] == [
        ("conv2_nonlinear", 0.1, False),  # has no filters
        ("conv2_conv", 0.1, False),
        ("conv2_conv filters", 0.02, True),
    ]
    tuned = setup.with_heads(setup.pretrained_network(), placements[1:], frozen=False)
    groups = heads_task(tuned, setup.views(), recipe).parameter_groups()
    trained = {id(parameter) for group in groups for parameter in group.parameters}
    below = {id(parameter) for parameter in tuned.backbone.feature_parameters("conv2")}
    assert trained == below | {id(parameter) for parameter in tuned.heads.parameters()}
    assert all((parameter.ndim == 4) == g.is_orthogonalised for g in groups for parameter in g.parameters)


@pytest.mark.parametrize(
    ("epochs", "milestones"),
    [(100, (30, 60, 80)), (200, (60, 120, 160)), (10, (3, 6, 8)), (5, (2, 3, 4)), (1, (1,))],
)
def test_schedule_scales_with_the_length_of_the_run(epochs: int, milestones: tuple[int, ...]) -> None:
    assert stretched((30, 60, 80), 100, epochs) == milestones
    schedule, _ = PretrainConfig().stretched(epochs).schedules()
    assert schedule.milestones == milestones
    assert schedule.lr(0) == 0.1
    assert schedule.lr(milestones[0]) == pytest.approx(0.02)


def test_fine_tuning_trains_the_blocks_up_to_the_layer_and_their_statistics(setup: EvaluationSetup) -> None:
    (cell,) = run("fine-tune", setup, ("conv2",), ("conv",))
    assert (cell.method, cell.layer, cell.head, cell.note) == ("fine-tune", "conv2", "conv", "lr 0.05")
    state = part(final_state(setup, "fine-tune-conv2-conv"), "backbone.")
    for name, before in setup.pretrained.items():
        changed = not torch.equal(state[name], before)
        assert changed == name.startswith(("conv1.", "conv2.")), name


def test_untrained_networks_differ_in_batch_norm_alone(setup: EvaluationSetup) -> None:
    running, batch = (
        setup.backbone(Subject(PLACEMENTS, is_pretrained=False, batchnorm=mode)).eval()
        for mode in ("running", "batch")
    )
    x = torch.randn(8, 3, SIDE, SIDE)
    assert all(torch.equal(a, b) for a, b in zip(running.parameters(), batch.parameters(), strict=True))
    assert not torch.allclose(running(x), batch(x))
    assert torch.equal(running.train()(x), batch(x))  # train mode takes the batch's statistics


def test_batch_statistics_leave_nothing_behind() -> None:
    network = trained_network()
    use_batch_statistics(network)
    before = checkpoint.state_hash(network.state_dict())
    x = torch.randn(8, 3, SIDE, SIDE)
    assert torch.equal(network.train()(x), network.eval()(x))
    assert checkpoint.state_hash(network.state_dict()) == before


def test_random_init_has_rows_for_both_modes(setup: EvaluationSetup) -> None:
    cells = run("random-init", setup, ("conv2",), ("conv",), epochs=1)
    assert [(c.method, c.layer, c.head, c.note) for c in cells] == [
        ("random-init", "conv2", "conv", "running statistics"),
        ("random-init", "conv2", "conv", "batch statistics"),
    ]


def test_random_network_depends_on_the_seed_alone(setup: EvaluationSetup) -> None:
    first = setup.random_network(4, 3)
    state = torch.random.get_rng_state()
    second, other = setup.random_network(4, 3), replace(setup, seed=1).random_network(4, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_random_network_starts_as_the_pretrained_one_did(setup: EvaluationSetup) -> None:
    assert setup.random_network(4, 3).conv1[0].bn.weight.eq(1).all()
    drawn = replace(setup, config=replace(setup.config, uniform_gamma=True))
    assert drawn.random_network(4, 3).conv1[0].bn.weight.lt(1).all()


def test_supervised_baseline_learns_three_blocks_from_scratch(setup: EvaluationSetup) -> None:
    (cell,) = run("supervised", setup, epochs=25)
    assert (cell.method, cell.layer, cell.head) == ("supervised", None, None)
    assert cell.accuracy > 60  # chance is 25
    state = final_state(setup, "supervised")
    assert {name.partition(".")[0] for name in state} == {"conv1", "conv2", "conv3", "classifier"}
    assert state["classifier.bias"].shape == (4,)


def test_knn_has_one_row_for_each_layer_and_network(setup: EvaluationSetup) -> None:
    pretrained = run("knn", setup)
    assert [(c.method, c.layer, c.head) for c in pretrained] == [
        ("frozen", "conv1", "knn"),
        ("frozen", "conv2", "knn"),
    ]
    assert pretrained[0].accuracy > 60  # brightness tells the class; chance is 25
    untrained = run("random-init-knn", setup)
    assert [(c.layer, c.note) for c in untrained] == [
        ("conv1", "running statistics"),
        ("conv2", "running statistics"),
        ("conv1", "batch statistics"),
        ("conv2", "batch statistics"),
    ]


def test_few_labels_are_the_first_of_each_class_in_file_order() -> None:
    split = Split(
        torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1), torch.tensor([1, 0, 1, 1, 0, 2, 2, 0, 2])
    )
    kept = first_of_each_class(split, 2)
    assert kept.images.flatten().tolist() == [0, 1, 2, 4, 5, 6]
    assert kept.labels.tolist() == [1, 0, 1, 0, 2, 2]


@pytest.mark.parametrize("count", [0, 4])
def test_more_labels_than_there_are_is_an_error(count: int) -> None:
    split = Split(torch.zeros(7, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    with pytest.raises(ArgumentError, match=rf"images-per-class is {count}; the smallest class has 3"):
        first_of_each_class(split, count)


def test_few_labels_are_revisited_until_an_epoch_has_its_usual_size(setup: EvaluationSetup) -> None:
    loader = replace(setup, images_per_class=2).views().loader
    (indices, ids) = zip(*((batch.indices, batch.sample_ids) for batch in loader.epoch(0)), strict=True)
    assert torch.bincount(torch.cat(indices)).tolist() == [5] * 8  # 40 visits to 8 images
    assert len(set(torch.cat(ids).tolist())) == 40  # each with its own augmentation


def first_images(views: ObjectViews, count: int) -> Batch:
    """The first training images in the order of the set."""
    loader, rows = views.loader, torch.arange(count)
    assert isinstance(loader, ResidentLoader)
    return Batch(loader.images, rows, loader.labels[rows], rows, False, count)


def test_training_views_are_augmented_and_test_views_are_not(setup: EvaluationSetup) -> None:
    views = setup.views()
    batch = first_images(views, 16)
    mean, std = torch.tensor(setup.dataset.mean), torch.tensor(setup.dataset.std)
    plain = ((batch.images[:16] / 255 - mean) / std).permute(0, 3, 1, 2)
    known = setup.plain_loader(Split(batch.images[:16], batch.labels))
    ((tested, shown),) = views.plain(known)
    torch.testing.assert_close(shown, plain[tested.indices])
    first = views.augmented(batch).clone()
    views.begin_epoch(1)
    second = views.augmented(batch).clone()
    assert not torch.allclose(first, plain)
    assert not torch.allclose(first, second)
    views.begin_epoch(0)
    assert torch.equal(views.augmented(batch), first)


def class_after_class(setup: EvaluationSetup) -> EvaluationSetup:
    """The same images and labels, sorted by class."""

    def sorted_split(split: Split) -> Split:
        order = split.labels.argsort(stable=True)
        return Split(split.images[order], split.labels[order])

    dataset = setup.dataset
    return replace(
        setup,
        dataset=replace(dataset, train=sorted_split(dataset.train), test=sorted_split(dataset.test)),
        folder=setup.folder / "sorted",
    )


def test_plain_views_show_every_image_once_and_mix_the_classes(setup: EvaluationSetup) -> None:
    setup = class_after_class(replace(setup, batch_size=8))  # 10 images of each class
    loader = setup.plain_loader(setup.labelled())
    batches = [batch.indices for batch, _ in setup.views().plain(loader)]
    assert [len(indices) for indices in batches] == [8] * 5
    assert torch.cat(batches).sort().values.tolist() == list(range(40))
    assert all(len(loader.labels[indices].unique()) > 1 for indices in batches)
    again = [batch.indices for batch, _ in setup.views().plain(loader)]
    assert torch.equal(torch.cat(again), torch.cat(batches))


@pytest.mark.parametrize("protocol", ["random-init", "random-init-knn"])
def test_batch_statistics_tell_classes_that_lie_one_after_the_other(
    setup: EvaluationSetup, protocol: str
) -> None:
    # Normalised within a batch of one class, classes look much alike: some 40 to 60 %.
    setup = replace(class_after_class(setup), batch_size=10)
    setup = replace(setup, dataset=replace(setup.dataset, test=setup.dataset.train))
    cells = {cell.note: cell.accuracy for cell in run(protocol, setup, ("conv1",), ("nonlinear",), 15)}
    assert cells["batch statistics"] > 75


def test_features_keep_the_order_of_the_images(setup: EvaluationSetup) -> None:
    network, views = setup.pretrained_network().eval(), setup.views()
    mean, std = torch.tensor(setup.dataset.mean), torch.tensor(setup.dataset.std)
    images = setup.dataset.test.images
    plain = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = network.features(plain, ["conv2"])["conv2"].mean(dim=(2, 3))
    batches = ((batch.indices, shown) for batch, shown in views.plain(views.test_loader))
    pooled = frozen_features(network, batches, len(images), ["conv2"])
    torch.testing.assert_close(pooled["conv2"], expected)


def test_accuracy_counts_every_test_image_once(setup: EvaluationSetup) -> None:
    views = setup.views()  # 22 test images in batches of 16 and 6; classes 0 and 1 have 6, 2 and 3 have 5

    def always(label: int, batch: torch.Tensor) -> torch.Tensor:
        return torch.eye(4)[label].expand(len(batch), 4)

    task = ObjectClassification(
        torch.nn.Identity(), lambda batch: {"a": always(0, batch), "b": always(3, batch)}, [], views
    )
    assert task.evaluate() == {"a_accuracy": pytest.approx(600 / 22), "b_accuracy": pytest.approx(500 / 22)}


def test_training_accuracy_and_loss_are_sums_over_images(setup: EvaluationSetup) -> None:
    logits = torch.tensor([[4.0, 0, 0, 0]]).expand(8, 4)
    views = setup.views()
    task = ObjectClassification(torch.nn.Identity(), lambda _: {"a": logits, "b": logits}, [], views)
    images, labels = task.views(first_images(views, 8))
    output = task.loss(task.forward(images), labels)
    cross_entropy = torch.nn.functional.cross_entropy(logits, torch.arange(8) % 4)
    torch.testing.assert_close(output.loss, 2 * cross_entropy)
    torch.testing.assert_close(output.sums["loss"], 8 * 2 * cross_entropy)
    assert (output.sums["a_accuracy"], output.sums["count"]) == (2, 8)


def test_finished_training_is_not_repeated(setup: EvaluationSetup) -> None:
    first = run("frozen", setup)
    metrics = (setup.folder / "frozen" / "metrics.jsonl").read_bytes()
    assert run("frozen", setup) == first
    assert (setup.folder / "frozen" / "metrics.jsonl").read_bytes() == metrics


def test_folder_of_an_evaluation_with_other_settings_is_refused(setup: EvaluationSetup) -> None:
    run("frozen", setup)
    with pytest.raises(CheckpointError, match=r"images_per_class is None there and 2 here"):
        run("frozen", replace(setup, images_per_class=2))


def test_unknown_head_is_named() -> None:
    for placements in ([("conv2", "svm")], []):
        with pytest.raises(ArgumentError, match=r"heads is (svm|empty); choose from nonlinear, conv"):
            HeadsOnBackbone(
                trained_network(),
                placements,
                image_shape=(3, SIDE, SIDE),
                num_classes=4,
                width=0.05,
                seed=0,
                frozen=True,
            )
