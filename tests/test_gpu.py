"""The whole line on an NVIDIA GPU; skipped without one. Run with `pytest -m gpu`."""

import json
import subprocess
import sys

import pytest
import safetensors.numpy

from autotune.device.inspect import inspect_device

pytestmark = pytest.mark.gpu


def autotune(folder, *arguments, timeout_s=280):
    command = [sys.executable, "-m", "autotune", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_doctor_measures_every_precision_the_device_claims(tmp_path):
    found = autotune(tmp_path, "doctor")
    assert found["device"]["kind"] == "cuda"
    rates = {name: rate for name, rate in found["checks"].items() if "matmul" in name}
    assert rates["cuda_matmul_fp32_tflops"] > 0
    assert rates["cuda_matmul_fp16_tflops"] > rates["cuda_matmul_fp32_tflops"]


def test_probe_reads_device_memory_of_each_process(tmp_path):
    grid = ["--num-envs", "32", "--batch-size", "256", "--concurrency", "1,2"]
    one, two = autotune(tmp_path, "probe", "atari", "--games", "Breakout,Pong", *grid)["rows"]
    for row in (one, two):
        assert row["status"] == "ok"
        assert row["effective"]["device"].startswith("cuda")
        assert row["vram_peak_bytes"] > row["framework_peak_bytes"] > 0
        if inspect_device().gpu.mig_enabled:  # NVML tells it of whole boards only
            assert row["gpu_utilisation"] is None
        else:
            assert 0 < row["gpu_utilisation"] <= 1
        assert row["power_w"] > 0
    assert len(two["job_sps"]) == 2
    assert two["vram_peak_bytes"] > 1.5 * one["vram_peak_bytes"]


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_lanes_take_turns_at_acting(tmp_path, overlap, cuda_graphs):
    recipe = tmp_path / "turns.toml"
    recipe.write_text(
        f'name = "turns"\nworkload = "atari"\n[hyperparameters]\nlanes = 2\noverlap = {str(overlap).lower()}\n'
        f"cuda_graphs = {str(cuda_graphs).lower()}\n"
        "[knobs]\nnum_envs = [64]\nbatch_size = [1024]\nconcurrency = [1]\n"
        '[[jobs]]\nid = "breakout"\nenv = "Breakout-v5"\nseed = 1\nsteps = 1000\n'
    )
    (row,) = autotune(tmp_path, "probe", "turns.toml", "--num-envs", "64", "--batch-size", "1024")["rows"]
    assert (row["effective"]["acting_lanes"], row["effective"]["overlap"]) == (2, overlap)
    assert row["sps"] > 0


@pytest.mark.parametrize(
    ("env", "precision"), [("Breakout-v5", "auto"), ("Breakout-v5", "fp16"), ("CartPole-v1", "auto")]
)
@pytest.mark.parametrize("overlap", [False, True])
def test_replayed_work_computes_what_the_steps_do(env, precision, overlap):
    torch = pytest.importorskip("torch")
    from autotune.records import Budget, Job, Point
    from autotune.workloads.atari import AtariWorkload

    values = {"rollout": 32, "epochs": 2, "cuda_graphs": True, "overlap": overlap, "precision": precision}
    job = Job(id="a", env=env, seed=1, budget=Budget(unit="steps", amount=1e6))
    session = AtariWorkload(values).open(Point(num_envs=16, batch_size=64), job, "cuda")
    learner = session._learner
    for _ in range(4):
        session.step()
    session.synchronize()
    assert session.effective["cuda_graphs"] is True
    assert learner._minibatches._graph is not None
    assert all(act._graph is not None for act in learner._acts)
    rollout = session._collector.collect(session._buffers[0], 32)
    samples = rollout.buffer.samples(32, 0.99, 0.95)
    rows, found = samples.rows[:64], []
    for replayed in (True, False):
        learner.cuda_graphs = replayed
        terms = learner.gradients(samples, rows).tolist()
        found.append((terms, [p.grad.flatten().double().clone() for p in learner.model.parameters()]))
        learner.scaler.update()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-2, abs=1e-4)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert float(torch.nn.functional.cosine_similarity(one, two, dim=0)) > 0.999
    # The actions, log probabilities and values kept are those of the present policy.
    observations = rollout.buffer.observations(3)
    with torch.no_grad(), learner.autocast():
        logits, values = learner._policy(observations)
    kept = logits.log_softmax(-1).gather(-1, rollout.buffer.actions[3].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(kept, rollout.buffer.log_probs[3], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(values, rollout.buffer.values[3], rtol=1e-2, atol=1e-2)
    session.close()


REFUSED = """
import torch
from autotune.workloads.atari.graphs import can_record
ones = torch.ones(4, device="cuda")
assert not can_record(lambda: (ones * ones.sum().item(),))
assert torch.cuda.current_stream() == torch.cuda.default_stream()
assert (ones * 2).sum().item() == 8
"""


def test_work_that_waits_for_the_device_is_not_recorded():
    """In a process of its own: it should record nothing more."""
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-c", REFUSED], check=True, timeout=120)


def test_graphs_are_the_default_where_they_can_be_recorded():
    torch = pytest.importorskip("torch")
    from autotune.records import Budget, Job, Point
    from autotune.workloads.atari import AtariWorkload
    from autotune.workloads.atari.graphs import can_record

    ones = torch.ones(4, device="cuda")
    assert can_record(lambda: (ones * ones.sum(),))
    assert (ones * 2).sum().item() == 8
    job = Job(id="a", env="Breakout-v5", seed=1, budget=Budget(unit="steps", amount=1e6))
    for compile_it in (False, True):
        session = AtariWorkload({"compile": compile_it}).open(Point(num_envs=4, batch_size=64), job, "cuda")
        assert session.effective["cuda_graphs"] is not compile_it
        session.close()


def test_oom_is_a_value_and_leaves_the_device_clean(tmp_path):
    recipe = tmp_path / "big.toml"
    recipe.write_text(
        'name = "big"\nworkload = "atari"\n[hyperparameters]\nrollout = 16384\n'
        "[knobs]\nnum_envs = [64, 2048]\nbatch_size = [1024, 1048576]\nconcurrency = [1]\n"
        "[baseline]\nnum_envs = 64\nbatch_size = 1024\nconcurrency = 1\n"
        '[[jobs]]\nid = "breakout"\nenv = "Breakout-v5"\nseed = 1\nsteps = 1000\n'
    )
    before = inspect_device().gpu.vram_used_bytes
    command = ["probe", "big.toml", "--num-envs", "2048", "--batch-size", "1048576", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "autotune", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr[-3000:]
    assert json.loads(done.stdout)["rows"][0]["status"] == "oom"
    assert inspect_device().gpu.vram_used_bytes < before + 256 * 2**20


@pytest.mark.timeout(600)
def test_search_then_train_at_the_tuned_point(tmp_path):
    games = ["--games", "Breakout,Pong"]
    found = autotune(tmp_path, "search", "atari", *games, "--budget", "4m", "--price", "2.0", timeout_s=330)
    assert found["status"] == "ok"
    manifest = tmp_path / "runs" / "atari-1" / "manifest.json"
    short = json.loads(manifest.read_text())
    for job in short["jobs"]:
        job["budget"] = {"unit": "steps", "amount": 200_000}
    manifest.write_text(json.dumps(short))
    trained = autotune(tmp_path, "train", str(manifest))
    assert {job["status"] for job in trained["jobs"]} == {"done"}
    assert trained["sps"] == pytest.approx(found["sps"], rel=0.15)


def test_deterministic_training_is_bit_identical_and_moves_to_the_cpu(tmp_path):
    job = {"id": "breakout", "env": "Breakout-v5", "seed": 1, "budget": {"unit": "steps", "amount": 20_000}}
    manifest = {
        "schema": 1,
        "name": "same",
        "workload": {"name": "atari", "hyperparameters": {"deterministic": True}},
        "point": {"num_envs": 16, "batch_size": 256, "concurrency": 1},
        "jobs": [job],
    }
    (tmp_path / "same.json").write_text(json.dumps(manifest))
    found = []
    for name in ("one", "two"):
        autotune(tmp_path, "train", "same.json", "--name", name)
        newest = sorted((tmp_path / "runs" / name).glob("train/jobs/breakout/checkpoints/*.safetensors"))[-1]
        found.append({key: array.tobytes() for key, array in safetensors.numpy.load_file(newest).items()})
    assert found[0] == found[1]
    manifest |= {"name": "other", "point": {"num_envs": 8, "batch_size": 64, "concurrency": 1}}
    job["budget"]["amount"] = 22_000
    (tmp_path / "other.json").write_text(json.dumps(manifest))
    moved = autotune(tmp_path, "train", "other.json", "--resume-from", "one", "--device", "cpu")
    assert moved["jobs"][0]["status"] == "done"
    assert moved["jobs"][0]["env_steps"] >= 22_000
