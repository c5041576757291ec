"""What a caller has set up in torch for itself changes nothing of what is loaded, computed and trained."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import read_digits_once, tiny_config

import rotnet_fast
from rotnet_fast.backbone import Backbone, load_backbone
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.ambient import kept_generators, own_draws, plain_torch
from rotnet_fast.evaluate import EvaluateConfig, evaluate
from rotnet_fast.export import ExportConfig, export
from rotnet_fast.pretrain import pretrain
from rotnet_fast.pretrained import read_pretrained
from rotnet_fast.protocols.result import render
from rotnet_fast.visualize import VisualizeConfig, visualize

SHIPPED = "nin4-cifar10-jpeg"


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN, too
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16 by default": lambda: default_type(torch.bfloat16),
    "float16 by default": lambda: default_type(torch.float16),
    "float64 by default": lambda: default_type(torch.float64),
    "on meta": lambda: torch.device("meta"),
    "on meta by default": lambda: default_device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
}


@pytest.fixture(params=STATES)
def state(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[Any]]:
    """Each of the states that torch may be in."""
    return STATES[request.param]


State = Callable[[], AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(SHIPPED, "cpu")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run folder of a tiny pretraining, not to be changed."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    with read_digits_once():
        pretrain(tiny_config(folder))
        yield folder


def test_weights_are_loaded_as_they_are(state: State, run: Path, tmp_path: Path) -> None:
    export(ExportConfig(run, tmp_path / "export"))
    for place in (SHIPPED, run, tmp_path / "export"):
        expected = load_backbone(place, "cpu").network.state_dict()
        with state():
            found = load_backbone(place, "cpu")
        assert checkpoint.state_hash(found.network.state_dict()) == checkpoint.state_hash(expected)


def test_a_network_that_was_loaded_can_be_fine_tuned(state: State, images: torch.Tensor) -> None:
    with state():
        network = load_backbone(SHIPPED, "cpu").network
    network.requires_grad_(True).train()
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_features_and_logits_have_the_same_bits(
    state: State, backbone: Backbone, images: torch.Tensor
) -> None:
    normalised = rotnet_fast.rotate_batch(images, rotations=(0,), pad=0, flip_prob=0.0)[0]

    def use() -> list[torch.Tensor]:
        return [
            backbone.features(images, "conv3"),
            backbone.features(images, batch_size=2),
            backbone.features(normalised),
            backbone(images, batch_size=2),
            backbone.rotation_logits(images),
            backbone.rotation_logits(images, batch_size=2),
        ]

    expected = use()
    with state():
        found = use()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rotations", [(0, 90, 180, 270), (0, 45)])
def test_views_have_the_same_bits(state: State, images: torch.Tensor, rotations: tuple[int, ...]) -> None:
    expected = rotnet_fast.rotate_batch(images, rotations=rotations, seed=3)
    with state():
        found = rotnet_fast.rotate_batch(images, rotations=rotations, seed=3)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_pretraining_ends_in_the_same_state(state: State, run: Path, tmp_path: Path) -> None:
    with state():
        found = pretrain(tiny_config(tmp_path / "run"))
    saved = checkpoint.load(run / "checkpoints" / "last.pt")
    again = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert found["precision"] == "fp32"
    for part in ("module", "optimizer", "metrics"):
        assert checkpoint.state_hash(again[part]) == checkpoint.state_hash(saved[part])


def test_an_evaluation_finds_the_same(
    state: State, run: Path, tmp_path: Path, untouched: dict[str, Any]
) -> None:
    with state():
        found = evaluate(evaluation(run), tmp_path / "evaluation")
    assert render(found) == render(untouched)


def evaluation(run: Path) -> EvaluateConfig:
    return EvaluateConfig(run, epochs=1, supervised=True, fine_tune=True, knn=True, linear=True, device="cpu")


@pytest.fixture(scope="module")
def untouched(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an evaluation finds in a fresh process."""
    return evaluate(evaluation(run), tmp_path_factory.mktemp("evaluated") / "evaluation")


def drawn_and_exported(run: Path, folder: Path) -> dict[str, bytes]:
    """Files of a picture that all test images and the network take part in, and of an export."""
    visualize(VisualizeConfig(run, what=("calibration",), device="cpu", output=folder))
    export(ExportConfig(run, folder))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def files(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a fresh process draws and exports."""
    return drawn_and_exported(run, tmp_path_factory.mktemp("plain") / "files")


def test_pictures_and_exports_are_the_same_files(
    state: State, run: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    with state():
        found = drawn_and_exported(run, tmp_path / "files")
    assert found == files


def test_the_network_of_a_run_is_read_as_it_is(state: State, run: Path) -> None:
    expected = read_pretrained(run).network().state_dict()
    with state():
        found = read_pretrained(run).network()
    assert checkpoint.state_hash(found.state_dict()) == checkpoint.state_hash(expected)


def test_the_callers_state_is_as_it_was_afterwards(state: State) -> None:
    with state():
        before = ambient()
        load_backbone(SHIPPED, "cpu")
        with plain_torch():
            assert ambient()[:5] == (torch.float32, torch.device("cpu"), True, False, False)
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, True
        with pytest.raises(ZeroDivisionError):
            plain_torch()(lambda: 1 / 0)()
        assert ambient() == before


def test_threads_that_overlap_keep_the_types_that_they_need_and_restore_the_callers() -> None:
    first_is_in, second_is_in, first_is_out = threading.Event(), threading.Event(), threading.Event()
    seen: list[torch.dtype] = []

    def second() -> None:
        first_is_in.wait(60)
        with plain_torch():
            second_is_in.set()
            first_is_out.wait(60)
            seen.append(torch.get_default_dtype())

    with default_type(torch.float64):
        thread = threading.Thread(target=second)
        thread.start()
        with plain_torch():
            first_is_in.set()
            assert second_is_in.wait(60)
        first_is_out.set()
        thread.join()
        assert (seen, torch.get_default_dtype()) == ([torch.float32], torch.float64)


def test_generators_are_not_restored_while_another_thread_draws() -> None:
    is_in, may_leave = threading.Event(), threading.Event()

    def other() -> None:
        with kept_generators([]):
            is_in.set()
            may_leave.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    assert is_in.wait(60)
    with own_draws(3):
        drawn = [torch.rand(4)]
        may_leave.set()
        thread.join(0.2)
        drawn.append(torch.rand(4))
    thread.join()
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(torch.cat(drawn), torch.cat([torch.rand(4, generator=generator) for _ in range(2)]))


@pytest.mark.filterwarnings("ignore:.*use of fork")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_forked_while_a_thread_draws_can_draw() -> None:
    is_in = threading.Event()

    def other() -> None:
        with own_draws():
            is_in.set()
            time.sleep(0.5)  # longer than another thread takes to fork

    def draw() -> None:
        with plain_torch(), own_draws(3):
            torch.rand(4)

    thread = threading.Thread(target=other)
    thread.start()
    assert is_in.wait(60)
    process = multiprocessing.get_context("fork").Process(target=draw)
    process.start()
    process.join(30)
    process.kill()
    thread.join()
    assert process.exitcode == 0
    draw()  # nor does the fork leave anything held here


def test_trainings_in_threads_end_as_those_alone(tmp_path: Path) -> None:
    def trained(seed: int, place: str) -> str:
        tiny = {"limit_train": 20, "limit_test": 20, "epochs": 1, "width": 0.1, "blocks": 3, "device": "cpu"}
        output = tmp_path / place / str(seed)
        done = rotnet_fast.train_rotnet("digits", preset="quickstart", seed=seed, output=output, **tiny)
        return str(done.metrics["state_hash"])

    alone = [trained(seed, "alone") for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(trained, range(4), ["together"] * 4)) == alone


def ambient() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )


def test_weights_that_a_step_changed_are_not_taken_from_the_cache_of_an_outer_autocast() -> None:
    layer, inputs = torch.nn.Linear(3, 2), torch.ones(1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with plain_torch():
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(inputs).count_nonzero() > 0
            with torch.no_grad():
                layer.weight.zero_()
                layer.bias.zero_()
            with torch.autocast("cpu", torch.bfloat16):
                assert layer(inputs).count_nonzero() == 0
        assert torch.is_autocast_cache_enabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_waits_for_a_thread_that_makes_a_network(tmp_path: Path) -> None:
    # In a process of its own, which would hang for ever.
    program = """
        import os, threading, time
        from rotnet_fast.engine.ambient import own_draws
        from rotnet_fast.models.build import make_network

        def make():
            with own_draws():
                is_drawing.set()
                time.sleep(0.5)  # until the fork waits
                make_network(4, model="resnet18")

        is_drawing = threading.Event()
        thread = threading.Thread(target=make)
        thread.start()
        is_drawing.wait()
        child = os.fork()
        if child == 0:
            with own_draws():
                os._exit(0)
        thread.join()
        print(os.waitpid(child, 0)[1])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "0\n", done.stderr
