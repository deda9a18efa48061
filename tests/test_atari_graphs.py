"""CUDA graphs, with a stand-in for the device's recording: what is replayed reads the recorded tensors only."""

import contextlib

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("envpool")

from autotune.errors import WorkerError  # noqa: E402
from autotune.records import Budget, Job, Point  # noqa: E402
from autotune.workloads.atari import AtariWorkload, graphs  # noqa: E402
from autotune.workloads.atari.graphs import WARM_UP, Replayed  # noqa: E402


class Recording:
    """As a graph does: the recorded work runs again on the recorded tensors, and leaves its outputs in place."""

    parameters = ()

    def __init__(self, work, generator):
        self.work, self.generator, self.replays = work, generator, 0
        state = None if generator is None else generator.get_state()
        self.outputs = work()
        if state is not None:  # recording draws nothing
            generator.set_state(state)
        for output in self.outputs:
            output.detach().fill_(7)  # nor does it compute anything

    def replay(self):
        self.replays += 1
        parameters = self.parameters if self.generator is None else ()  # acting has no gradients
        gradients = [parameter.grad for parameter in parameters]
        for output, new in zip(self.outputs, self.work(), strict=True):
            output.detach().copy_(new.detach())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient  # what Python holds stays as it was


@pytest.fixture(autouse=True)
def recordings(monkeypatch):
    found = []

    def record(work, generator):
        found.append(Recording(work, generator))
        return found[-1], found[-1].outputs

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setenv("AUTOTUNE_THREADS", "1")
    return found


def tensors(*values):
    return [torch.tensor([float(value)]) for value in values]


def test_work_is_recorded_when_its_shapes_have_settled(recordings):
    double = Replayed(lambda x: (2 * x,))
    assert [double(x)[0].item() for x in tensors(*range(8))] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [each.replays for each in recordings] == [8 - WARM_UP]
    assert double(torch.ones(3))[0].tolist() == [2, 2, 2]  # another shape, step by step
    assert [each.replays for each in recordings] == [8 - WARM_UP]
    assert double(torch.ones(1))[0].tolist() == [2]
    assert [each.replays for each in recordings] == [9 - WARM_UP]


def test_the_usual_shape_is_recorded_between_others(recordings):
    double = Replayed(lambda x: (2 * x,))
    for number in range(1, 30):
        size = number if number % 2 else 4
        assert double(torch.ones(size))[0].tolist() == [2] * size
    (recording,) = recordings
    assert recording.outputs[0].shape == (4,)


def test_what_comes_next_overwrites_the_outputs():
    double = Replayed(lambda x: (2 * x,))
    outputs = [double(x)[0] for x in tensors(*range(8))]
    assert outputs[-1] is outputs[-2]


def test_work_is_recorded_on_the_device_of_its_tensors(monkeypatch):
    """A recording takes place on the current device, which is the first one, and would be empty for another one's."""
    current = []

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tensor.device)
        yield
        current.pop()

    def record(work, generator):
        assert current == [torch.device("meta")]
        raise WorkerError("recorded")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(graphs, "record", record)
    ones = torch.ones(1, device="meta")
    double = Replayed(lambda x: (2 * x,))
    for _ in range(WARM_UP):
        double(ones)
    with pytest.raises(WorkerError, match="recorded"):
        double(ones)
    current.clear()
    assert not graphs.can_record(lambda: (2 * ones,))


def weights_after(monkeypatch, iterations, *, replayed, **settings):
    values = {"rollout": 16, "epochs": 2, "precision": "fp32", "env_threads": 1, "lanes": 1, **settings}
    job = Job(id="a", env=values.pop("env"), seed=3, budget=Budget(unit="steps", amount=1e6))
    session = AtariWorkload(values).open(Point(num_envs=3, batch_size=12), job, "cpu")
    session._learner.cuda_graphs = replayed
    monkeypatch.setattr(Recording, "parameters", tuple(session._learner.model.parameters()))
    metrics = [dict(session.step().metrics) for _ in range(iterations)]
    arrays = session.state().arrays
    session.close()
    return metrics, {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("env", "precision"), [("CartPole-v1", "fp32"), ("Pong-v5", "fp32"), ("Pong-v5", "bf16")])
def test_replayed_training_is_the_training(recordings, monkeypatch, env, precision, overlap):
    if precision == "bf16":
        monkeypatch.setattr("autotune.workloads.atari.session.native_precisions", lambda device: ("bf16", "fp32"))
    settings = {"env": env, "precision": precision, "overlap": overlap}
    plain = weights_after(monkeypatch, 3, replayed=False, **settings)
    assert recordings == []
    assert weights_after(monkeypatch, 3, replayed=True, **settings) == plain
    act, learn = sorted(recordings, key=lambda each: each.generator is None)
    assert act.replays > 40
    assert learn.replays > 10
    assert learn.generator is None


@pytest.mark.parametrize(("batch_size", "recorded"), [(96, []), (24, [24])])
def test_no_minibatch_is_recorded_whose_size_hangs_on_the_resets(batch_size, recorded):
    """The rows of a rollout of CartPole vary in number, and with them the only minibatch of an epoch."""
    values = {"rollout": 16, "epochs": 4, "precision": "fp32", "env_threads": 1, "lanes": 1}
    job = Job(id="a", env="CartPole-v1", seed=3, budget=Budget(unit="steps", amount=1e6))
    session = AtariWorkload(values).open(Point(num_envs=6, batch_size=batch_size), job, "cpu")
    session._learner.cuda_graphs = True
    for _ in range(4):
        assert session.step().reset_rows > 0
    assert [shape[0] for shape in session._learner._minibatches._shapes[:1]] == recorded
    session.close()


def test_converted_weights_are_not_taken_into_a_recording():
    values = {"rollout": 16, "epochs": 1, "precision": "fp32", "lanes": 1}
    job = Job(id="a", env="Pong-v5", seed=3, budget=Budget(unit="steps", amount=1e6))
    session = AtariWorkload(values).open(Point(num_envs=2, batch_size=32), job, "cpu")
    learner, cached = session._learner, []
    learner.precision, learner.cuda_graphs = "bf16", True
    learner.model.register_forward_pre_hook(lambda *_: cached.append(torch.is_autocast_cache_enabled()))
    with torch.no_grad(), learner.autocast():
        for _ in range(WARM_UP + 2):
            learner.act(session._buffers[0].observations(0))
    assert not any(cached)
    session.close()


def test_a_checkpoint_goes_on_in_recorded_work(recordings):
    values = {"rollout": 16, "epochs": 2, "precision": "fp32", "env_threads": 1, "lanes": 1}
    job = Job(id="a", env="CartPole-v1", seed=3, budget=Budget(unit="steps", amount=1e6))
    found = []
    for replayed in (False, True):
        session = AtariWorkload(values).open(Point(num_envs=6, batch_size=24), job, "cpu")
        session._learner.cuda_graphs = replayed
        session.step()
        state = session.state()
        session.step()
        session.restore(state)
        session.step()
        found.append({name: array.tobytes() for name, array in session.state().arrays.items()})
        session.close()
    assert found[0] == found[1]
    assert len(recordings) == 2


def test_without_cuda_the_setting_has_no_effect():
    values = {"rollout": 16, "cuda_graphs": True}
    job = Job(id="a", env="CartPole-v1", seed=3, budget=Budget(unit="steps", amount=1e6))
    session = AtariWorkload(values).open(Point(num_envs=2, batch_size=8), job, "cpu")
    assert session.effective["cuda_graphs"] is False
    session.step()
    session.close()


def test_a_trial_says_whether_work_can_be_recorded(monkeypatch, recordings):
    calls = []
    assert graphs.can_record(lambda: (calls.append(1) or torch.ones(1),))
    assert (len(recordings), len(calls)) == (1, WARM_UP + 1)

    def refuse(work, generator):
        raise WorkerError("operation not permitted")

    monkeypatch.setattr(graphs, "record", refuse)
    assert not graphs.can_record(lambda: (torch.ones(1),))


class Capture:
    """As torch's recording is left by an error: it cannot be ended, and its own stream stays current."""

    current = "default"

    def __init__(self, graph, *, stream, capture_error_mode):
        self.stream = stream

    def __enter__(self):
        Capture.current = self.stream

    def __exit__(self, *_):
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.fixture
def refusing(monkeypatch):
    """A device that refuses whatever is recorded."""
    monkeypatch.undo()  # the true recording
    monkeypatch.setattr(Capture, "current", "default")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Capture.current)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(Capture, "current", stream))


def raising(error):
    def work():
        raise error

    return work


def test_running_out_of_memory_is_no_refusal(refusing):
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        graphs.record(raising(torch.OutOfMemoryError("CUDA out of memory")), None)
    assert Capture.current == "default"


def test_what_cannot_be_recorded_names_the_setting(refusing):
    with pytest.raises(WorkerError, match=r"cuda_graphs = true .*due to a previous error.*; use cuda_graphs = false"):
        graphs.record(raising(RuntimeError("operation not permitted when stream is capturing")), None)


def test_work_goes_on_in_its_stream_after_a_refusal(refusing):
    assert not graphs.can_record(lambda: (torch.ones(1),))
    assert Capture.current == "default"
