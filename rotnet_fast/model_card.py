"""The model card of exported weights: Markdown with YAML front matter, made only of what is known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rotnet_fast
from rotnet_fast.config import NIN, PretrainConfig
from rotnet_fast.plain import counted, plural_of
from rotnet_fast.pretext_tasks import PRETEXT_TASKS, ROTATION, PretextFacts
from rotnet_fast.protocols.result import cells_of

_METHODS = {
    "frozen": "these weights, frozen",
    "fine-tune": "these weights, fine-tuned",
    "random-init": "untrained network, frozen",
    "supervised": "no pretraining, supervised from scratch",
}
"""Method of a `Cell` -> what a row is called."""

_LICENCES = {
    "cifar10": "CIFAR-10: its authors state no licence. They ask to cite Alex Krizhevsky, *Learning Multiple "
    "Layers of Features from Tiny Images*, 2009. Its images come from 80 Million Tiny Images, a collection "
    "from the web that its own authors withdrew in 2020.",
    "digits": "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning "
    "Repository, 1998 (doi 10.24432/C50P49): CC BY 4.0.",
    "folder": "unknown: ask the owner of the images.",
}
"""Data set -> licence of its images, where the user says nothing else."""

_HUB_NAMES = {"cifar10": "uoft-cs/cifar10"}
"""Data set -> its name where model cards are collected."""

_CITATION = """```bibtex
@inproceedings{gidaris2018unsupervised,
  title     = {Unsupervised Representation Learning by Predicting Image Rotations},
  author    = {Gidaris, Spyros and Singh, Praveer and Komodakis, Nikos},
  booktitle = {International Conference on Learning Representations},
  year      = {2018}
}
```"""


@dataclass(frozen=True)
class CardFacts:
    """The facts that a card states.

    Attributes:
        config: recipe of the pretraining.
        in_channels: channels of the images.
        ablation: name of what was changed about the method on purpose; empty for the method itself.
        epochs, steps: finished epochs, and steps of the one after them.
        metrics: on the test images after the last finished epoch; empty where it was not tested.
        preset: name of the recipe; None where it is not recorded.
        dataset_name: what the data set is called.
        train_images, test_images: how many; None where it is not recorded.
        hardware: what it was trained on; None where it is not recorded.
        evaluations: folder name and ``results.json`` of each evaluation of these weights.
        feature_shapes: layer -> (C, H, W) for an image of the training's size.
        default_layer: that of the network.
        parameters: learned numbers of the network.
        state_hash: of the weights, see `rotnet_fast.engine.checkpoint.state_hash`.
        file_name, file_sha256: of the weights' file.
        data_licence: what the user says of it.
    """

    config: PretrainConfig
    in_channels: int
    ablation: str
    epochs: int
    steps: int
    metrics: Mapping[str, float]
    preset: str | None
    dataset_name: str
    train_images: int | None
    test_images: int | None
    hardware: str | None
    evaluations: Sequence[tuple[str, Mapping[str, Any]]]
    feature_shapes: Mapping[str, tuple[int, int, int]]
    default_layer: str
    parameters: int
    state_hash: str
    file_name: str
    file_sha256: str
    data_licence: str | None


def render_card(facts: CardFacts) -> str:
    """Render the whole card; equal facts give equal text."""
    sections = {
        "": _summary(facts),
        "Use": _use(facts),
        "Architecture": _architecture(facts),
        "Training": _training(facts),
        "Results": _results(facts),
        "Limitations": _limitations(facts),
        "Licence": _licence(facts),
        "Citation": _CITATION,
    }
    body = [f"## {title}\n\n{text}" if title else text for title, text in sections.items()]
    return "\n\n".join([f"---\n{_front_matter(facts)}---", f"# {_title(facts)}", *body]) + "\n"


def _title(facts: CardFacts) -> str:
    model = f"NIN-{facts.config.blocks}" if _is_nin(facts) else facts.config.model
    method = "RotNet" if _is_rotnet(facts) else facts.config.pretext_task.capitalize()
    return f"{method}, {model}, {_text(facts.dataset_name)}"


def _is_nin(facts: CardFacts) -> bool:
    return facts.config.model == NIN


def _is_rotnet(facts: CardFacts) -> bool:
    return facts.config.pretext_task == ROTATION


def _task(facts: CardFacts) -> PretextFacts:
    return PRETEXT_TASKS[facts.config.pretext_task]


def _library_name(model: str) -> str:
    """Return the display name of a library's network: ``resnet18 of torchvision``."""
    library, slash, name = model.rpartition("/")
    return f"{name} of {library}" if slash else f"{name} of torchvision"


def _front_matter(facts: CardFacts) -> str:
    """Render the YAML; texts are quoted as JSON, which YAML reads, too."""
    name = facts.config.dataset
    lines = ["license: mit"] if name != "folder" else ["license: other", "license_name: see-licence-section"]
    lines += ["library_name: rotnet_fast", "pipeline_tag: image-feature-extraction", "tags:"]
    tags = ["rotnet", "rotation-prediction"] if _is_rotnet(facts) else [facts.config.pretext_task]
    lines += [f"- {tag}" for tag in ("self-supervised-learning", *tags, "pytorch", "safetensors")]
    if name in _HUB_NAMES:
        lines += ["datasets:", f"- {_HUB_NAMES[name]}"]
    lines += ["metrics:", "- accuracy"]
    scores = list(_scores(facts))
    if scores:
        lines += ["model-index:", f"- name: {json.dumps(_title(facts))}", "  results:"]
    for task, dataset, split, metric, value in scores:
        lines += [
            "  - task:",
            "      type: image-classification",
            f"      name: {json.dumps(task)}",
            "    dataset:",
            f"      type: {json.dumps(_HUB_NAMES.get(name, name))}",
            f"      name: {json.dumps(_text(dataset))}",
            f"      split: {split}",
            "    metrics:",
            "    - type: accuracy",
            f"      name: {json.dumps(metric)}",
            f"      value: {value:.2f}",
        ]
    return "\n".join(lines) + "\n"


def _tested_on(facts: CardFacts) -> str:
    """Return ``test``, or ``validation`` where training images were held out to be tested on."""
    return "test" if facts.config.validation is None else "validation"


def _scores(facts: CardFacts) -> Iterator[tuple[str, str, str, str, float]]:
    """Yield task, data set, its split, metric and percent of each result of these weights."""
    measure = _task(facts).measure
    if _task(facts).is_classification and measure in facts.metrics:
        name, split = measure.replace("_", " "), _tested_on(facts)
        task = name.replace("accuracy", "prediction")
        yield task, facts.dataset_name, split, f"{name} in %", facts.metrics[measure]
    for _, results in facts.evaluations:
        for cell in cells_of(results):
            if cell.method in ("frozen", "fine-tune"):
                where = " ".join(part for part in (cell.layer, cell.head, cell.variant) if part)
                metric = f"object accuracy in %, {_METHODS[cell.method]}, {where}, {_labels(results)}"
                dataset = results["dataset"]
                name, split = dataset["display_name"], dataset["tested_on"]
                yield "object classification", name, split, metric, cell.accuracy


def _summary(facts: CardFacts) -> str:
    config = facts.config
    if _is_nin(facts):
        network = f"a Network in Network with {counted(config.blocks, 'conv block')}"
    else:
        network = f"the network {_library_name(config.model)}, trained from scratch,"
    authors = "RotNet (Gidaris, Singh and Komodakis, ICLR 2018)"
    how = f". This is not {authors}, but another pretext task to compare it with"
    if _is_rotnet(facts):
        how = f" ({', '.join(map(str, config.rotations))} degrees counter-clockwise), after {authors}"
    return (
        f"Image features learned without labels: {network} that {_task(facts).learned}{how}. Made with "
        f"rotnet_fast {rotnet_fast.__version__}."
    )


def _use(facts: CardFacts) -> str:
    size, channels = facts.config.image_size, facts.in_channels
    layer = facts.default_layer
    depth, height, width = facts.feature_shapes[layer]
    return f"""```python
import torch, rotnet_fast

backbone = rotnet_fast.load_backbone("FOLDER")  # the folder of this file
images = torch.randint(0, 256, (8, {size}, {size}, {channels}), dtype=torch.uint8)  # [N,H,W,C], RGB, 0..255
maps = backbone.features(images, layer="{layer}")  # [8,{depth},{height},{width}]
vectors = backbone(images)  # [8,{depth}]: the maps' means
network = backbone.network  # nn.Module, for fine-tuning
```

`{facts.file_name}` is a plain safetensors file (SHA-256 `{facts.file_sha256}`); its metadata hold the
normalisation and all that is needed to build the network. Loading verifies a digest of weights and metadata.
SHA-256 of the weights' values: `{facts.state_hash}`."""


def _architecture(facts: CardFacts) -> str:
    config = facts.config
    rows = [f"| {layer} | {c} | {h} x {w} |" for layer, (c, h, w) in facts.feature_shapes.items()]
    size = config.image_size
    told = f"classifier of {config.outputs} {_task(facts).outputs_name}" if config.outputs else ""
    if _is_nin(facts):
        end = f"global average pooling and a linear {told}" if told else "no classifier"
        network = (
            f"{counted(config.blocks, 'block')} of one spatial and two 1x1 convolutions, each with "
            "BatchNorm and "
            f"ReLU; width multiplier {config.width:g}; {end}"
        )
    else:
        network = f"{_library_name(config.model)}, with a {told}"
    return "\n".join(
        [
            f"{network}; {facts.parameters:,} parameters.",
            "",
            f"Feature maps of an image of {size} x {size} pixels:",
            "",
            "| layer | channels | size |",
            "|---|---:|---:|",
            *rows,
        ]
    )


def _training(facts: CardFacts) -> str:
    config = facts.config
    rate = f"learning rate {config.lr:g}"
    if config.schedule == "step":
        milestones = ", ".join(map(str, config.milestones))
        rate += f", times {config.lr_factor:g} after epochs {milestones}" if milestones else ", constant"
    else:
        warmup = config.warmup
        risen = f" after a warm-up of {warmup:g} epochs" if warmup else ""
        rate += f"{risen}, falling to 0 ({config.schedule})"
    views = config.batch_size * (1 if _shows_one_rotation(facts) else config.views_per_image)
    done = f"{facts.epochs} of {config.epochs}"
    if facts.steps:
        done += f", and {counted(facts.steps, 'step')} of the next"
    size = config.image_size
    images = _count(facts.train_images, "training image")
    data = f"{_text(facts.dataset_name)}, {images} of {size} x {size} pixels"
    data += ". No labels were used"
    uses = []
    if config.limit_train is not None:
        uses.append("choose a subset that is balanced over the classes")
    if config.validation is not None:
        uses.append("hold out some images of each class")
    if uses:
        data += f", except to {' and to '.join(uses)}"
    nesterov = "Nesterov momentum" if config.nesterov else "momentum"
    optimiser = f"SGD, {nesterov} 0.9"
    if config.optimizer == "muon":
        decay = "" if config.muon_weight_decay is None else f" and weight decay {config.muon_weight_decay:g}"
        filters = f"learning rate {config.muon_lr:g} on the same schedule{decay}"
        optimiser = f"Muon for filters, with {filters}; else {optimiser}"
    items = {
        "data": data,
        "augmentation": _augmentation(facts),
        "optimiser": f"{optimiser}, weight decay {config.weight_decay:g}, batches of "
        f"{counted(config.batch_size, 'image')} ({counted(views, 'view')})",
        "schedule": rate + (f"; preset `{facts.preset}`" if facts.preset else ""),
        "epochs": done,
        "precision": f"{config.precision} (weights are float32)",
        "seed": str(config.seed),
    }
    if config.uniform_gamma:
        items["first weights"] = "BatchNorm's scales from U(0, 1)"
    if facts.ablation:
        items["ablation"] = f"{facts.ablation}: not the method as published"
    if facts.hardware:
        items["hardware"] = _text(facts.hardware)
    return "\n".join(f"- {name}: {text}" for name, text in items.items())


def _shows_one_rotation(facts: CardFacts) -> bool:
    return facts.ablation == "OneRotation"


def _augmentation(facts: CardFacts) -> str:
    """Describe what is done to a training image, in order."""
    config = facts.config
    size, is_warped = config.image_size, any(angle % 90 for angle in config.rotations)
    if config.is_cropped:
        least, most = (f"{100 * share:.3g}" for share in config.crop_scale)
        low, high = (f"{ratio:.3g}" for ratio in config.crop_ratio)
        crop = (
            f"random crop of {least} to {most} % of the image's area, with a width of {low} to {high} times "
        )
        crop += f"its height, resized to {size} x {size} pixels"
    elif config.pad and _task(facts).has_border:
        border = "mirrored" if is_warped else "black"
        crop = f"random crop within a {border} border of {counted(config.pad, 'pixel')}"
    else:
        crop = "no crop"
    probability = config.flip_prob
    flip = f"left-right flip with probability {probability:g}" if probability else "no flip"
    if not _is_rotnet(facts):
        shown = _task(facts).shown
        return f"{crop}, {flip}; then {shown}" if shown else f"{crop}, {flip}"
    number = "one random rotation" if _shows_one_rotation(facts) else "every rotation"
    turned = f"{number} of each image"
    if is_warped:
        turned = f"{number} of each image's central square of {size / 2**0.5:.1f} pixels, enlarged to {size}"
    if facts.ablation == "FlipAfterRotation":
        flip = f"left-right flip of each view with probability {probability or 0.5:g}"
        return f"{crop}; then {turned}; then {flip}"
    return f"{crop}, {flip}; then {turned}"


def _results(facts: CardFacts) -> str:
    tested = _count(facts.test_images, f"{_tested_on(facts)} image")
    if not _is_rotnet(facts):
        parts = [f"{_solved(facts)} {tested} of {_text(facts.dataset_name)}."]
    elif "rotation_accuracy" in facts.metrics:
        by_degrees = ", ".join(
            f"{degrees}°: {facts.metrics[key]:.2f} %"
            for degrees in facts.config.rotations
            if (key := f"rotation_accuracy/{degrees}") in facts.metrics
        )
        accuracy = f"Rotation accuracy: **{facts.metrics['rotation_accuracy']:.2f} %** on {tested}"
        accuracy += f" of {_text(facts.dataset_name)}, each turned by every rotation"
        parts = [accuracy + (f" ({by_degrees})." if by_degrees else ".")]
    else:
        parts = ["Rotation accuracy: not measured for these weights."]
    if not facts.evaluations:
        parts.append("Object accuracy: not measured for these weights.")
    for folder, results in facts.evaluations:
        dataset = results["dataset"]
        rows = [
            f"| {_METHODS[cell.method]} | {cell.layer or '-'} | {cell.head or '-'} "
            f"| {cell.variant or '-'} | {cell.accuracy:.2f} |"
            for cell in cells_of(results)
        ]
        parts.append(
            f"Object accuracy in % on {counted(dataset['test_images'], dataset['tested_on'] + ' image')} of "
            f"{_text(dataset['display_name'])} (`{folder}`: {_labels(results)}, "
            f"epochs {results['settings']['epochs']}, seed {results['settings']['seed']}):\n\n"
            + "\n".join([*_TABLE_HEAD, *rows])
        )
    return "\n\n".join(parts)


def _solved(facts: CardFacts) -> str:
    """Say how well another pretext task than RotNet's is solved, up to the number of images."""
    task = _task(facts)
    name = task.measure.replace("_", " ").capitalize()
    if task.is_classification and task.measure in facts.metrics:
        guessing = 100 / facts.config.outputs
        return f"{name}: **{facts.metrics[task.measure]:.2f} %** (guessing: {guessing:.2f} %) on"
    if not task.is_classification and "loss" in facts.metrics:
        return f"{name}: **{facts.metrics['loss']:.4g}**, mean squared, of normalised pixels, on"
    return f"{name}: not measured for these weights, on"


_TABLE_HEAD = ("| features | layer | classifier | variant | accuracy |", "|---|---|---|---|---:|")


JPEG_TRACE = (
    "Images that were kept as JPEG files carry a trace of which way up they were, and the rotation task can "
    "use it"
)


def _limitations(facts: CardFacts) -> str:
    size = facts.config.image_size
    best = f"{facts.default_layer} is usually the best layer for objects"
    if not _is_nin(facts):
        best = "Which layer is best for objects has to be tried"
    items = [f"Learned from {size} x {size} images of one data set: expect less on other sizes or subjects."]
    if _is_rotnet(facts):
        items.append(
            "The features come from telling which way up an image is: they suit images with a natural "
            "orientation, and less so those without one, such as microscopy or aerial images."
        )
    items += [
        f"{best}; later layers turn towards the {facts.config.pretext_task} task.",
        "The data set's biases are in the features. Nothing here was tested for decisions about people.",
        "One training with one seed; nothing is said here of the spread over seeds.",
    ]
    if facts.config.dataset == "folder" and _is_rotnet(facts):
        items.append(
            f"{JPEG_TRACE}: `python -m rotnet_fast.visualize --what compression` measures by how much."
        )
    if not _is_nin(facts):
        items.append("Another network than the published one: published accuracies do not apply.")
    elif facts.config.width != 1:
        items.append("Another width than the published network's: published accuracies do not apply.")
    if facts.epochs < facts.config.epochs:
        items.append("The training had not reached its end.")
    return "\n".join(f"- {item}" for item in items)


def _licence(facts: CardFacts) -> str:
    data = facts.data_licence or _LICENCES[facts.config.dataset]
    return f"- code: MIT\n- data, {_text(facts.dataset_name)}: {_text(data)}"


def _labels(results: Mapping[str, Any]) -> str:
    count = results["settings"]["images_per_class"]
    if count is None:
        return counted(results["dataset"]["train_images"], "label")
    return counted(count, "label per class", "labels per class")


def _count(number: int | None, noun: str) -> str:
    return f"an unrecorded number of {plural_of(noun)}" if number is None else counted(number, noun)


def _text(text: str) -> str:
    """Put a user's text on one line."""
    return " ".join(text.split())
