"""Metric sums, number formats, devices and run folders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rotnet_fast.backbone import load_backbone
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.metrics import MetricSums, means
from rotnet_fast.engine.precision import Precision, resolve_device, resolve_precision, working_device
from rotnet_fast.engine.run_folder import RunFolder, environment, epoch_checkpoints
from rotnet_fast.engine.signals import WARNINGS, Interrupted, StopSignals
from rotnet_fast.errors import ArgumentError, CannotWriteError
from rotnet_fast.models.nin import NetworkInNetwork

CPU = torch.device("cpu")


def add(sums: MetricSums, device: torch.device, *losses: float) -> None:
    for loss in losses:
        one = torch.ones((), dtype=torch.int64, device=device)
        sums.add({"loss": torch.tensor(loss, device=device), "count": one}, torch.zeros((), device=device))


def test_sums_are_read_per_interval_and_per_epoch(device: torch.device) -> None:
    sums = MetricSums()
    add(sums, device, 1.0, 2.0)
    assert sums.read_interval() == {"loss": 3.0, "count": 2.0}
    add(sums, device, 5.0)
    assert sums.read_interval() == {"loss": 5.0, "count": 1.0}
    assert sums.read() == {"loss": 8.0, "count": 3.0}


def test_sums_do_not_change_the_tensors_they_were_given(device: torch.device) -> None:
    first = torch.tensor(1.0, dtype=torch.float64, device=device)
    sums = MetricSums()
    for _ in range(2):
        sums.add({"loss": first}, torch.zeros((), device=device))
    assert first.item() == 1.0


def test_sums_continue_exactly_from_a_saved_state(device: torch.device) -> None:
    whole, before = MetricSums(), MetricSums()
    losses = torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()
    add(whole, device, *losses[:7])
    add(before, device, *losses[:7])
    whole.read_interval()
    before.read_interval()
    add(whole, device, *losses[7:])
    add(before, device, *losses[7:12])
    after = MetricSums()
    after.load_state_dict(before.state_dict(), device)
    add(after, device, *losses[12:])
    assert after.read_interval() == whole.read_interval()
    assert after.state_dict() == whole.state_dict()


def test_means_are_per_view_and_accuracies_in_percent() -> None:
    assert means({"loss": 6.0, "rotation_accuracy": 3.0, "count": 4.0}) == {
        "loss": 1.5,
        "rotation_accuracy": 75.0,
    }


def test_auto_precision_never_emulates() -> None:
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert resolve_precision("auto", CPU).name == ("bf16" if native else "fp32")


def test_fp16_on_the_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(ArgumentError, match=r"fp16.*CUDA.*BatchNorm.*--precision bf16"):
        resolve_precision("fp16", CPU)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ArgumentError, match="'tf32'; choose from auto, fp32"):
        resolve_precision("tf32", CPU)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_weights_gradients_and_statistics_are_fp32_in_every_precision(
    name: str, device: torch.device
) -> None:
    if name == "fp16" and device.type == "cpu":
        pytest.skip("fp16 is refused on the CPU")
    precision = resolve_precision(name, device)
    network = NetworkInNetwork(blocks=3, width=0.05).to(device)
    with precision.autocast():
        logits = network(torch.randn(8, 3, 16, 16, device=device, dtype=precision.dtype))
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.arange(8, device=device) % 4)
    loss.backward()
    tensors = [*network.parameters(), *(parameter.grad for parameter in network.parameters())]
    tensors += [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    assert {tensor.dtype for tensor in tensors if tensor is not None} == {torch.float32}


def test_batch_statistics_accumulate_in_fp32_from_bf16_activations(device: torch.device) -> None:
    # A bf16 sum would stop growing at 256 times its addend; the mean of 64k values near 3 would be far off.
    x = (3 + torch.randn(16, 8, 64, 64, generator=torch.Generator().manual_seed(0))).bfloat16().to(device)
    norm = torch.nn.BatchNorm2d(8, momentum=1.0).to(device)
    with Precision("bf16", device.type).autocast():
        norm(x.contiguous(memory_format=torch.channels_last))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, x.double().mean((0, 2, 3)).float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_var, x.double().var((0, 2, 3)).float(), rtol=1e-4, atol=0)


def test_loss_scaling_is_for_fp16_alone() -> None:
    assert not Precision("bf16", "cpu").grad_scaler().is_enabled()
    assert Precision("bf16", "cpu").grad_scaler().state_dict() == {}


def test_auto_takes_a_cuda_device_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"cuda:99.*--device cpu"):
        resolve_device("cuda:99")


def test_no_more_threads_are_used_than_the_process_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("rotnet_fast.engine.precision.available_cores", lambda: 1)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        working_device("cpu")
        assert torch.get_num_threads() == threads  # the user knows better
        monkeypatch.delenv("OMP_NUM_THREADS")
        load_backbone("nin4-cifar10-jpeg", "cpu")
        assert torch.get_num_threads() == threads  # which are the program's own
        with plain_torch():
            working_device("cpu")
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries are left as they are")
def test_freed_memory_stays_in_the_process_once_that_was_asked_for() -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from rotnet_fast.memory import reuse_freed_memory
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
def left(): block = bytearray(b"1") * (200 * 2**20); del block; return resident()
before = left()
reuse_freed_memory()
print(before, left())
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before < 100
    assert after > 200


@pytest.mark.faults("second run in a folder")
def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "run"),
        pytest.raises(ArgumentError, match=r"in use by another run \(process \d+\)"),
    ):
        RunFolder(tmp_path / "run", resume=True)
    RunFolder(tmp_path / "run").close()


def test_a_folder_that_holds_a_run_is_refused_unless_resumed(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.write_config({})
    with pytest.raises(ArgumentError, match=r"already holds a run; add --resume auto"):
        RunFolder(tmp_path / "run")
    RunFolder(tmp_path / "run", resume=True).close()


def test_a_refused_folder_is_not_left_locked(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.write_config({})
    for _ in range(2):
        with pytest.raises(ArgumentError, match="already holds"):
            RunFolder(tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_a_plain_sentence() -> None:
    with pytest.raises(CannotWriteError, match="cannot write /dev/null/run: Not a directory"):
        RunFolder(Path("/dev/null/run"))


def test_metrics_are_cut_back_to_a_position(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.append_metrics({"step": 1})
        position = run.metrics_position()
        run.append_metrics({"step": 2})
        run.truncate_metrics(position)
        run.truncate_metrics(position + 1000)  # a shorter file is left as it is
        run.append_metrics({"step": 3})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1}, {"step": 3}]


def test_settings_and_results_are_json_that_reads_back(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.write_config({"rotations": (0, 90), "data_dir": Path("data")})
        run.write_results({"accuracy": 91.1})
    assert json.loads((tmp_path / "config.json").read_text()) == {"rotations": [0, 90], "data_dir": "data"}
    assert json.loads((tmp_path / "results.json").read_text()) == {"accuracy": 91.1}


def test_the_environment_names_versions_and_hardware() -> None:
    found = environment("cpu")
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"] == found["cpu"] != ""
    assert environment("mps")["kernel"] == found["kernel"]  # the CPU makes the views


def test_a_run_records_the_commit_of_its_checkout() -> None:
    root = Path(__file__).resolve().parents[2]
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    assert head.stdout.startswith(environment("cpu")["commit"].removesuffix("-dirty"))


def test_a_signal_that_an_inner_context_did_not_obey_reaches_the_outer_one() -> None:
    with pytest.raises(Interrupted), StopSignals() as outer, outer.interruptible(), StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)  # after the inner loop's last look


def test_under_torchrun_which_passes_signals_on_only_the_first_one_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as stopped:
            stop.check()
        stop.forget()
    assert stopped.value.exit_code == 130


def test_a_signal_that_was_obeyed_reaches_nobody_else() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.check()
        stop.forget()
        stop.check()


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in WARNINGS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", WARNINGS)
def test_a_signal_that_is_ignored_as_under_nohup_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with StopSignals() as stop, StopSignals() as inner:
        os.kill(os.getpid(), number)
        assert (stop.received, inner.received) == (0, 0)


@pytest.mark.usefixtures("_handlers")
def test_a_program_that_listens_to_a_signal_itself_still_does() -> None:
    heard = []
    signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (stop.received, heard) == (0, [signal.SIGUSR1])


@pytest.mark.parametrize("number", WARNINGS)
def test_a_warning_that_comes_again_changes_nothing_and_is_gone_afterwards(number: signal.Signals) -> None:
    with StopSignals() as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.received == number
        stop.forget()
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_warning_reaches_the_context_that_is_at_work() -> None:
    with StopSignals() as outer, StopSignals() as inner:
        os.kill(os.getpid(), signal.SIGHUP)
        assert (outer.received, inner.received) == (0, signal.SIGHUP)
        inner.forget()


def test_after_a_warning_one_sigterm_is_noted_and_the_next_ends_the_program() -> None:
    with StopSignals() as outer:
        with StopSignals() as inner:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert (outer.received, inner.received) == (0, signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert outer.received == signal.SIGTERM
            inner.forget()
        outer.forget()


def test_checkpoints_of_epochs_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["epoch-9999.pt", "epoch-10000.pt", "epoch-0002.pt", "epoch-100000.pt"]
    for name in (*names, "epoch-final.pt", "epoch-0003 (copy).pt", "last.pt", "best.pt"):
        (tmp_path / name).touch()
    found = epoch_checkpoints(tmp_path)
    assert [epoch for epoch, _ in found] == [2, 9999, 10000, 100000]
    assert [path.name for _, path in found] == ["epoch-0002.pt", names[0], names[1], names[3]]
